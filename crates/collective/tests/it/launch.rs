//! Variables of launchers. Those of `mpirun` and `torchrun` were taken from processes of Open MPI 4.1.4 and PyTorch
//! 2.15.0; those of `srun` are made up, with the names that Slurm 22.05.8 sets.

use calotype_collective::{Launch, LaunchError, Rendezvous, Starter};
use proptest::prelude::*;

/// Names and values.
type Variables<'a> = &'a [(&'a str, &'a str)];

fn read(variables: Variables) -> Result<Launch, LaunchError> {
    let find =
        |name: &str| variables.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    Launch::from_variables(&find)
}

const TORCHRUN: &[(&str, &str)] = &[
    ("RANK", "5"),
    ("WORLD_SIZE", "8"),
    ("LOCAL_RANK", "1"),
    ("LOCAL_WORLD_SIZE", "4"),
    ("GROUP_RANK", "1"),
    ("MASTER_ADDR", "node01"),
    ("MASTER_PORT", "29500"),
    ("TORCHELASTIC_RUN_ID", "none"),
    ("TORCHELASTIC_RESTART_COUNT", "0"),
    ("TORCHELASTIC_USE_AGENT_STORE", "True"),
];

const OPEN_MPI: &[(&str, &str)] = &[
    ("OMPI_COMM_WORLD_RANK", "1"),
    ("OMPI_COMM_WORLD_SIZE", "2"),
    ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
    ("OMPI_COMM_WORLD_LOCAL_SIZE", "2"),
    ("OMPI_COMM_WORLD_NODE_RANK", "1"),
    ("PMIX_RANK", "1"),
    ("PMIX_NAMESPACE", "1712193537"),
    ("PMIX_HOSTNAME", "vm"),
];

const SRUN: &[(&str, &str)] = &[
    ("SLURM_JOB_ID", "77"),
    ("SLURM_STEP_ID", "0"),
    ("SLURM_PROCID", "4"),
    ("SLURM_NTASKS", "7"),
    ("SLURM_STEP_NUM_TASKS", "7"),
    ("SLURM_LOCALID", "0"),
    ("SLURM_NODEID", "2"),
    ("SLURM_STEP_TASKS_PER_NODE", "2(x3),1"),
    ("SLURM_STEP_NODELIST", "gpu[003-005,009]-ib"),
    ("SLURMD_NODENAME", "gpu005-ib"),
];

const SBATCH: &[(&str, &str)] =
    &[("SLURM_JOB_ID", "77"), ("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4"), ("SLURM_LOCALID", "0")];

const OWN: &[(&str, &str)] = &[
    ("CALOTYPE_RANK", "1"),
    ("CALOTYPE_WORLD_SIZE", "2"),
    ("CALOTYPE_LOCAL_RANK", "0"),
    ("CALOTYPE_LOCAL_SIZE", "1"),
    ("CALOTYPE_RENDEZVOUS", "[fd00::2]:4000"),
    ("CALOTYPE_HOST", "left"),
];

const PMI: &[(&str, &str)] =
    &[("PMI_RANK", "2"), ("PMI_SIZE", "4"), ("MPI_LOCALRANKID", "0"), ("MPI_LOCALNRANKS", "2")];

fn with<'a>(one: &[(&'a str, &'a str)], other: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [one, other].concat()
}

fn without<'a>(one: &[(&'a str, &'a str)], names: &[&str]) -> Vec<(&'a str, &'a str)> {
    one.iter().copied().filter(|(name, _)| !names.contains(name)).collect()
}

#[test]
fn every_launcher_is_understood() {
    let agent: [(&str, &str); 4] =
        [("SLURM_JOB_ID", "9"), ("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
    let pmix = with(
        &without(SRUN, &["SLURM_STEP_TASKS_PER_NODE"]),
        &[
            ("SLURM_STEP_TASKS_PER_NODE", "7"),
            ("SLURM_NODEID", "0"),
            ("SLURM_LOCALID", "4"),
            ("PMIX_RANK", "4"),
            ("PMIX_NAMESPACE", "slurm.pmix.77.0"),
        ],
    );
    let pmi2 = with(SRUN, &[("PMI_RANK", "4"), ("PMI_SIZE", "7"), ("PMI_JOBID", "77.0")]);
    let script = with(SRUN, &[("RANK", "4"), ("WORLD_SIZE", "7"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "80")]);
    let empty = with(OWN, &[("RANK", ""), ("WORLD_SIZE", "  ")]);
    let table: [(&str, Variables, [usize; 4], Starter); 14] = [
        ("nothing", &[], [0, 1, 0, 1], Starter::Nobody),
        ("torchrun", TORCHRUN, [5, 8, 1, 4], Starter::Torchrun),
        ("mpirun", OPEN_MPI, [1, 2, 1, 2], Starter::OpenMpi),
        ("srun", SRUN, [4, 7, 0, 2], Starter::Slurm),
        ("srun --mpi=pmix", &pmix, [4, 7, 4, 7], Starter::Pmix),
        ("mpiexec.hydra", PMI, [2, 4, 0, 2], Starter::Pmi),
        ("srun --mpi=pmi2", &pmi2, [4, 7, 0, 2], Starter::Pmi),
        ("hydra's daemons by srun", &with(PMI, &agent), [2, 4, 0, 2], Starter::Pmi),
        ("our own", OWN, [1, 2, 0, 1], Starter::Own),
        ("our own, others empty", &empty, [1, 2, 0, 1], Starter::Own),
        ("a batch script", SBATCH, [0, 1, 0, 1], Starter::Nobody),
        ("torchrun's agents by srun", &with(TORCHRUN, &agent), [5, 8, 1, 4], Starter::Torchrun),
        ("mpirun's daemons by srun", &with(OPEN_MPI, &agent), [1, 2, 1, 2], Starter::OpenMpi),
        ("a script that sets torchrun's variables", &script, [4, 7, 0, 2], Starter::Torchrun),
    ];
    for (name, variables, numbers, starter) in table {
        let launch = read(variables).unwrap_or_else(|error| panic!("{name}: {error}"));
        let Launch { rank, world, local_rank, local_size, started_by, .. } = launch;
        assert_eq!(([rank, world, local_rank, local_size], started_by), (numbers, starter), "{name}");
    }
}

#[test]
fn rank_0_is_found_by_what_the_launcher_tells() {
    let at = |host: &str, ports: Vec<u16>| Some(Rendezvous { hosts: vec![host.to_owned()], ports });
    // torchrun's agent listens on MASTER_PORT itself.
    assert_eq!(read(TORCHRUN).unwrap().rendezvous, at("node01", (29501..=29508).collect()));
    let older = with(TORCHRUN, &[("TORCHELASTIC_USE_AGENT_STORE", "False")]);
    assert_eq!(read(&older).unwrap().rendezvous, at("node01", vec![29500]));
    assert_eq!(read(OWN).unwrap().rendezvous, at("fd00::2", vec![4000]));
    let local = read(OPEN_MPI).unwrap();
    assert_eq!((local.host.as_str(), local.job.as_str()), ("vm", "1712193537"));
    let ports = local.rendezvous.unwrap();
    assert_eq!((ports.hosts, ports.ports.len()), (vec!["127.0.0.1".to_owned()], 8));
    let slurm = read(SRUN).unwrap();
    assert_eq!((slurm.host.as_str(), slurm.job.as_str()), ("gpu005-ib", "77.0"));
    assert_eq!(slurm.rendezvous.unwrap().hosts, ["gpu003-ib"]);
    let other = read(&with(SRUN, &[("SLURM_JOB_ID", "78")])).unwrap().rendezvous.unwrap();
    assert!(
        other.ports[0] >= 16_384 && *other.ports.last().unwrap() < 32_768,
        "below the ports of outgoing connections"
    );
    // Open MPI does not tell where rank 0 is on another host.
    let spread = with(OPEN_MPI, &[("OMPI_COMM_WORLD_LOCAL_RANK", "0"), ("OMPI_COMM_WORLD_LOCAL_SIZE", "1")]);
    assert_eq!(read(&spread).unwrap().rendezvous, None);
    assert!(read(SBATCH).unwrap().remark.unwrap().contains("SLURM_NTASKS=4, but srun did not start this process"));
}

#[test]
fn wrong_variables_are_named() {
    let table: [(Vec<(&str, &str)>, &str); 22] = [
        (
            with(OPEN_MPI, &[("PMIX_RANK", "0")]),
            "OMPI_COMM_WORLD_RANK=1 but PMIX_RANK=0: Open MPI and PMIx disagree; unset those that do not belong to this run",
        ),
        (
            with(SRUN, &[("RANK", "3"), ("WORLD_SIZE", "7")]),
            "RANK=3 but SLURM_PROCID=4: torchrun and Slurm disagree; unset those that do not belong to this run",
        ),
        (
            with(SRUN, &[("RANK", "4"), ("WORLD_SIZE", "8")]),
            "WORLD_SIZE=8 but SLURM_STEP_NUM_TASKS=7: torchrun and Slurm disagree; unset those that do not belong to this run",
        ),
        (
            with(OWN, OPEN_MPI),
            "CALOTYPE_LOCAL_RANK=0 but OMPI_COMM_WORLD_LOCAL_RANK=1: Calotype and Open MPI disagree; unset those that do not belong to this run",
        ),
        (
            with(SRUN, &[("PMIX_RANK", "0")]),
            "PMIX_RANK=0 but SLURM_PROCID=4: PMIx and Slurm disagree; unset those that do not belong to this run",
        ),
        (
            without(TORCHRUN, &["WORLD_SIZE"]),
            "RANK=5, LOCAL_RANK=1, LOCAL_WORLD_SIZE=4 are set, but WORLD_SIZE is not: torchrun's variables are incomplete; set all of them or none",
        ),
        (
            without(OPEN_MPI, &["OMPI_COMM_WORLD_RANK"]),
            "OMPI_COMM_WORLD_SIZE=2, OMPI_COMM_WORLD_LOCAL_RANK=1, OMPI_COMM_WORLD_LOCAL_SIZE=2 are set, but OMPI_COMM_WORLD_RANK is not: Open MPI's variables are incomplete; set all of them or none",
        ),
        (
            without(TORCHRUN, &["LOCAL_RANK"]),
            "RANK=5, WORLD_SIZE=8, LOCAL_WORLD_SIZE=4 are set, but LOCAL_RANK is not: torchrun's variables are incomplete; set all of them or none",
        ),
        (
            without(TORCHRUN, &["MASTER_PORT"]),
            "MASTER_ADDR=node01 is set, but MASTER_PORT is not: torchrun's variables are incomplete; set all of them or none",
        ),
        (
            without(OWN, &["CALOTYPE_LOCAL_SIZE"]),
            "CALOTYPE_RANK=1, CALOTYPE_WORLD_SIZE=2, CALOTYPE_LOCAL_RANK=0 are set, but CALOTYPE_LOCAL_SIZE is not: Calotype's variables are incomplete; set all of them or none",
        ),
        (
            vec![("CALOTYPE_LOCAL_RANK", "0")],
            "CALOTYPE_LOCAL_RANK=0 is set, but CALOTYPE_RANK is not: Calotype's variables are incomplete; set all of them or none",
        ),
        (
            without(SRUN, &["SLURM_NTASKS", "SLURM_STEP_NUM_TASKS"]),
            "SLURM_PROCID=4 is set, but SLURM_STEP_NUM_TASKS and SLURM_NTASKS are not: Slurm's variables are incomplete; set all of them or none",
        ),
        (
            vec![("PMIX_RANK", "1")],
            "PMIX_RANK=1 is set, but the number of processes (CALOTYPE_WORLD_SIZE) is not: PMIx's variables are incomplete; set all of them or none",
        ),
        (
            with(TORCHRUN, &[("RANK", "first")]),
            "the variable RANK is `first`, which is no number of processes; unset it or start by a launcher",
        ),
        (
            with(TORCHRUN, &[("RANK", "-1")]),
            "the variable RANK is `-1`, which is no number of processes; unset it or start by a launcher",
        ),
        (
            with(TORCHRUN, &[("RANK", "8")]),
            "RANK=8 but WORLD_SIZE=8: ranks are numbered from 0 to the number of processes less one, and no host has more than all",
        ),
        (
            with(TORCHRUN, &[("LOCAL_RANK", "4")]),
            "LOCAL_RANK=4 but LOCAL_WORLD_SIZE=4: ranks are numbered from 0 to the number of processes less one, and no host has more than all",
        ),
        (
            with(TORCHRUN, &[("MASTER_PORT", "65535")]),
            "the variable MASTER_PORT is `65535`: it takes a port from 1 to 65527",
        ),
        (
            with(TORCHRUN, &[("MASTER_PORT", "abc")]),
            "the variable MASTER_PORT is `abc`: it takes a port from 1 to 65527",
        ),
        (
            with(OWN, &[("CALOTYPE_WORLD_SIZE", "99999999999")]),
            "the variable CALOTYPE_WORLD_SIZE is `99999999999`: it takes the number of the run's processes, at most 1048576",
        ),
        (
            with(OWN, &[("CALOTYPE_RENDEZVOUS", "127.0.0.1:80:90")]),
            "the variable CALOTYPE_RENDEZVOUS is `127.0.0.1:80:90`: it takes the address of rank 0 as host:port, such as node01:29500",
        ),
        (
            with(OWN, &[("CALOTYPE_RENDEZVOUS", "node01")]),
            "the variable CALOTYPE_RENDEZVOUS is `node01`: it takes the address of rank 0 as host:port, such as node01:29500",
        ),
    ];
    for (variables, expected) in table {
        assert_eq!(read(&variables).unwrap_err().to_string(), expected);
    }
}

#[test]
fn slurms_short_lists_are_read() {
    let node = |tasks: &str, node: &str| {
        let variables = [("SLURM_STEP_TASKS_PER_NODE", tasks), ("SLURM_NODEID", node), ("SLURM_LOCALID", "0")];
        let launch = read(&with(SRUN, &variables));
        launch.map(|launch| launch.local_size).map_err(|error| error.to_string())
    };
    assert_eq!([node("2(x3),1", "3"), node("7", "0"), node("1,5,1", "1")], [Ok(1), Ok(7), Ok(5)]);
    for malformed in ["2(x3", "2(x)", "x", "2,,1", "(x2)", "2(x3)1", "-1", "99999999999999999999"] {
        let error = node(malformed, "3").unwrap_err();
        let expected = format!(
            "the variable SLURM_STEP_TASKS_PER_NODE is `{malformed}`: it takes numbers of tasks with repetitions, such as 2(x3),1"
        );
        assert_eq!(error, expected);
    }
    assert!(node("2(x3),1", "4").unwrap_err().ends_with("it has 4 nodes, but SLURM_NODEID=4"));
    assert!(node("9", "0").unwrap_err().contains("SLURM_STEP_TASKS_PER_NODE=9 but SLURM_STEP_NUM_TASKS=7"));
    let first = |list: &str| {
        let launch = read(&with(SRUN, &[("SLURM_STEP_NODELIST", list)]));
        launch.map(|launch| launch.rendezvous.unwrap().hosts.remove(0)).map_err(|error| error.to_string())
    };
    let hosts = [("a,b", "a"), ("n[0-3]", "n0"), ("n[07,1]x,m", "n07x"), ("r[1-2]n[3-4]", "r1n3"), ("login", "login")];
    for (list, host) in hosts {
        assert_eq!(first(list), Ok(host.to_owned()), "{list}");
    }
    for malformed in ["n[0-3", "n[]", ",a", "n]", "n[[1]]", "a b"] {
        let error = first(malformed).unwrap_err();
        assert!(error.ends_with("it takes a list of hosts, such as node[001-004,007]"), "{malformed}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_variables_are_read_or_refused(
        base in prop::sample::select(vec![TORCHRUN, OPEN_MPI, SRUN, OWN, PMI, SBATCH]),
        names in prop::collection::vec(0usize..64, 0..4),
        values in prop::collection::vec(
            prop_oneof![Just(String::new()), "[0-9]{1,20}", "[-0-9a-z\\[\\](),:x]{0,12}", Just("True".to_owned())],
            4,
        ),
    ) {
        let all: Vec<&str> = [TORCHRUN, OPEN_MPI, SRUN, OWN, PMI].iter().flat_map(|some| some.iter()).map(|(name, _)| *name).collect();
        let changed: Vec<(&str, &str)> =
            names.iter().zip(&values).map(|(name, value)| (all[name % all.len()], value.as_str())).collect();
        if let Ok(launch) = read(&with(base, &changed)) {
            prop_assert!(launch.rank < launch.world && launch.local_rank < launch.local_size);
            prop_assert!(launch.local_size <= launch.world);
        }
    }
}
