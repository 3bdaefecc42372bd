//! What started this process, and as which of how many: the variables that launchers set.

mod slurm;

use std::fmt;
use std::net::Ipv6Addr;

use xxhash_rust::xxh3::xxh3_64;

/// A program that starts the processes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Starter {
    /// Nobody: a run of one process.
    Nobody,
    /// Our own variables, `CALOTYPE_RANK` and so on.
    Own,
    /// `torchrun` (PyTorch 2.15), or a script that sets its variables.
    Torchrun,
    /// Open MPI's `mpirun` (4.1).
    OpenMpi,
    /// A launcher that speaks PMI: MPICH's or Intel's `mpiexec`, `srun --mpi=pmi2`.
    Pmi,
    /// A launcher that speaks PMIx: `prterun`, `srun --mpi=pmix`.
    Pmix,
    /// Slurm's `srun` (22.05).
    Slurm,
}

impl fmt::Display for Starter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Nobody => "nobody",
            Self::Own => "Calotype",
            Self::Torchrun => "torchrun",
            Self::OpenMpi => "Open MPI",
            Self::Pmi => "PMI",
            Self::Pmix => "PMIx",
            Self::Slurm => "Slurm",
        })
    }
}

/// Where rank 0 waits for the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendezvous {
    /// Names or addresses of rank 0's host, in the order in which they are tried.
    pub hosts: Vec<String>,
    /// Ports: rank 0 takes the first that is free, the others look for it in this order.
    pub ports: Vec<u16>,
}

/// The place of this process among the processes of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Our number among the processes, from 0.
    pub rank: usize,
    /// The number of processes.
    pub world: usize,
    /// Our number among the processes of this host, from 0.
    pub local_rank: usize,
    /// The number of processes on this host.
    pub local_size: usize,
    /// The name of this host, for messages.
    pub host: String,
    /// Whose variables were taken.
    pub started_by: Starter,
    /// Whether a launcher of MPI's is among those that set variables.
    pub by_mpi: bool,
    /// Where rank 0 waits, if the variables tell. MPI needs none.
    pub rendezvous: Option<Rendezvous>,
    /// What all processes of this run have in common, and those of another run have not; may be empty.
    pub job: String,
    /// Something that the user probably did not mean.
    pub remark: Option<String>,
}

/// Variables that do not say which process this is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// A variable holds something else than a number.
    #[error("the variable {variable} is `{value}`, which is no number of processes; unset it or start by a launcher")]
    NotANumber {
        /// Its name.
        variable: String,
        /// What it holds.
        value: String,
    },
    /// Some of the variables that belong together are missing.
    #[error("{set} set, but {missing} not: {starter}'s variables are incomplete; set all of them or none")]
    Incomplete {
        /// Whose variables they are.
        starter: Starter,
        /// What is there, with values.
        set: String,
        /// What is not.
        missing: String,
    },
    /// Two launchers say different things.
    #[error("{first} but {second}: {of} disagree; unset those that do not belong to this run")]
    Disagree {
        /// The variable of one, with its value.
        first: String,
        /// That of the other.
        second: String,
        /// Both launchers.
        of: String,
    },
    /// A rank that the run does not have.
    #[error(
        "{rank} but {world}: ranks are numbered from 0 to the number of processes less one, and no host has more than all"
    )]
    OutOfRange {
        /// The variable of the rank, with its value.
        rank: String,
        /// That of the number, with its value.
        world: String,
    },
    /// A variable of another form than its launcher's.
    #[error("the variable {variable} is `{value}`: {problem}")]
    Malformed {
        /// Its name.
        variable: String,
        /// What it holds.
        value: String,
        /// What it should be.
        problem: String,
    },
}

/// Names of one launcher's variables. An empty name: it has none.
struct Names {
    starter: Starter,
    rank: &'static str,
    world: &'static str,
    local_rank: &'static str,
    local_size: &'static str,
}

const fn names(starter: Starter, names: [&'static str; 4]) -> Names {
    let [rank, world, local_rank, local_size] = names;
    Names { starter, rank, world, local_rank, local_size }
}

/// All launchers but Slurm, by precedence: who is nearer to the process comes first.
const LAUNCHERS: [Names; 5] = [
    names(Starter::Own, ["CALOTYPE_RANK", "CALOTYPE_WORLD_SIZE", "CALOTYPE_LOCAL_RANK", "CALOTYPE_LOCAL_SIZE"]),
    names(Starter::Torchrun, ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]),
    names(
        Starter::OpenMpi,
        ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"],
    ),
    names(Starter::Pmi, ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"]),
    // PMIx tells the number of processes only to those that call it.
    names(Starter::Pmix, ["PMIX_RANK", "", "", ""]),
];

/// Above the number of processes of any run: a number beyond it is a slip.
const MOST_PROCESSES: usize = 1 << 20;
/// Ports that rank 0 tries one after the other where nobody chose one.
const PORTS_TRIED: u16 = 8;
/// Ports below those that systems give to outgoing connections.
const FIRST_PORT: u16 = 16_384;
const PORTS: u64 = 14_000;

/// A number and the variable that said it.
#[derive(Clone, Debug)]
struct Said {
    variable: &'static str,
    number: usize,
}

impl fmt::Display for Said {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}={}", self.variable, self.number)
    }
}

/// What one launcher says.
struct Found {
    starter: Starter,
    rank: Said,
    world: Option<Said>,
    local_rank: Option<Said>,
    local_size: Option<Said>,
}

impl Found {
    fn numbers(&self) -> [Option<&Said>; 4] {
        [Some(&self.rank), self.world.as_ref(), self.local_rank.as_ref(), self.local_size.as_ref()]
    }
}

/// The variables of an environment; empty ones count as not set.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    fn number(&self, variable: &'static str) -> Result<Option<Said>, LaunchError> {
        let Some(value) = self.text(variable) else { return Ok(None) };
        match value.parse() {
            Ok(number) => Ok(Some(Said { variable, number })),
            Err(_) => Err(LaunchError::NotANumber { variable: variable.to_owned(), value }),
        }
    }

    /// A port; whether it can be one is for [`master_rendezvous`] to say.
    fn port(&self, variable: &'static str) -> Result<Option<Said>, LaunchError> {
        self.number(variable).map_err(|error| match error {
            LaunchError::NotANumber { variable, value } => {
                LaunchError::Malformed { variable, value, problem: port_wanted() }
            }
            other => other,
        })
    }

    /// What one launcher says, if anything.
    fn found(&self, names: &Names) -> Result<Option<Found>, LaunchError> {
        let Names { starter, .. } = *names;
        let (rank, world) = (self.number(names.rank)?, self.number(names.world)?);
        let (local_rank, local_size) = (self.number(names.local_rank)?, self.number(names.local_size)?);
        let own = starter == Starter::Own;
        if rank.is_none() && world.is_none() && !(own && (local_rank.is_some() || local_size.is_some())) {
            return Ok(None);
        }
        let named = [(names.rank, &rank), (names.world, &world)];
        if let Some((missing, _)) = named.iter().find(|(name, said)| !name.is_empty() && said.is_none()) {
            let set = [&rank, &world, &local_rank, &local_size];
            return Err(incomplete(starter, &set.map(Option::as_ref), missing));
        }
        Ok(rank.map(|rank| Found { starter, rank, world, local_rank, local_size }))
    }

    /// What Slurm says of a process that `srun` started. The shell of a batch script has variables of a rank, too, but
    /// is none.
    fn found_in_step(&self) -> Result<Option<Found>, LaunchError> {
        let step = self.text("SLURM_STEP_ID").and_then(|step| step.parse::<u64>().ok());
        if step.is_none_or(|step| step >= slurm::FIRST_SPECIAL_STEP) {
            return Ok(None);
        }
        let Some(rank) = self.number("SLURM_PROCID")? else { return Ok(None) };
        let world = match self.number("SLURM_STEP_NUM_TASKS")? {
            Some(world) => world,
            None => self.number("SLURM_NTASKS")?.ok_or_else(|| {
                incomplete(Starter::Slurm, &[Some(&rank)], "SLURM_STEP_NUM_TASKS and SLURM_NTASKS are")
            })?,
        };
        let local_size =
            match (self.text(slurm::TASKS_PER_NODE), self.number("SLURM_NODEID")?) {
                (Some(tasks), Some(node)) => {
                    let number = slurm::tasks_on_node(&tasks, node.number).map_err(|problem| {
                        LaunchError::Malformed { variable: slurm::TASKS_PER_NODE.to_owned(), value: tasks, problem }
                    })?;
                    Some(Said { variable: slurm::TASKS_PER_NODE, number })
                }
                _ => None,
            };
        let local_rank = self.number("SLURM_LOCALID")?;
        Ok(Some(Found { starter: Starter::Slurm, rank, world: Some(world), local_rank, local_size }))
    }

    /// Everybody's word that is about this process.
    fn all_found(&self) -> Result<Vec<Found>, LaunchError> {
        let mut all = Vec::new();
        for names in &LAUNCHERS {
            all.extend(self.found(names)?);
        }
        let has = |all: &[Found], starter| all.iter().any(|found| found.starter == starter);
        if self.text("TORCHELASTIC_RUN_ID").is_some() && has(&all, Starter::Torchrun) {
            // Whatever started torchrun's agents speaks of them, not of their children.
            all.retain(|found| matches!(found.starter, Starter::Own | Starter::Torchrun));
        } else if !has(&all, Starter::OpenMpi) && (!has(&all, Starter::Pmi) || self.pmi_is_slurms()) {
            // Other launchers start their daemons by `srun`, whose variables their children inherit.
            all.extend(self.found_in_step()?);
        }
        Ok(all)
    }

    /// Whether `srun --mpi=pmi2` set PMI's variables, as it names its step in them.
    fn pmi_is_slurms(&self) -> bool {
        let step = self.text("SLURM_JOB_ID").zip(self.text("SLURM_STEP_ID")).map(|(job, step)| format!("{job}.{step}"));
        step.is_some() && self.text("PMI_JOBID") == step
    }

    fn rendezvous(&self, all: &[Found], launch: &Launch) -> Result<Option<Rendezvous>, LaunchError> {
        if let Some(address) = self.text("CALOTYPE_RENDEZVOUS") {
            return own_rendezvous(address).map(Some);
        }
        let elastic = self.text("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True");
        match (self.text("MASTER_ADDR"), self.port("MASTER_PORT")?) {
            (Some(host), Some(port)) => return master_rendezvous(host, &port, elastic).map(Some),
            (Some(host), None) => return Err(half_a_master(format!("MASTER_ADDR={host}"), "MASTER_PORT")),
            (None, Some(port)) => return Err(half_a_master(port.to_string(), "MASTER_ADDR")),
            (None, None) => {}
        }
        if launch.job.is_empty() {
            return Ok(None);
        }
        let first = FIRST_PORT + (xxh3_64(launch.job.as_bytes()) % PORTS) as u16;
        let ports = (first..first + PORTS_TRIED).collect();
        if launch.local_size == launch.world {
            return Ok(Some(Rendezvous { hosts: vec!["127.0.0.1".to_owned()], ports }));
        }
        if !all.iter().any(|found| found.starter == Starter::Slurm) {
            return Ok(None);
        }
        let Some(nodes) = self.text("SLURM_STEP_NODELIST") else { return Ok(None) };
        let host = slurm::first_host(&nodes).map_err(|problem| LaunchError::Malformed {
            variable: "SLURM_STEP_NODELIST".to_owned(),
            value: nodes,
            problem,
        })?;
        Ok(Some(Rendezvous { hosts: vec![host], ports }))
    }

    /// What only the processes of this run have in common.
    fn job(&self, all: &[Found]) -> String {
        let joined = |names: &[&str]| names.iter().filter_map(|name| self.text(name)).collect::<Vec<_>>().join(".");
        let of = |found: &Found| match found.starter {
            // Every run of torchrun that nobody named is called `none`.
            Starter::Torchrun => joined(&["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_PORT"]),
            Starter::OpenMpi | Starter::Pmix => joined(&["PMIX_NAMESPACE"]),
            Starter::Pmi => joined(&["PMI_JOBID"]),
            Starter::Slurm => joined(&["SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT"]),
            Starter::Own | Starter::Nobody => String::new(),
        };
        let named = || all.iter().map(of).find(|job| !job.is_empty());
        self.text("CALOTYPE_JOB").or_else(named).unwrap_or_default()
    }

    fn host(&self) -> String {
        ["CALOTYPE_HOST", "SLURMD_NODENAME", "PMIX_HOSTNAME"].iter().find_map(|name| self.text(name)).unwrap_or_else(
            || {
                let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
                name.unwrap_or_else(|| "an unnamed host".to_owned())
            },
        )
    }

    fn alone(&self) -> Launch {
        let tasks = self.text("SLURM_NTASKS").filter(|tasks| tasks != "1" && self.text("SLURM_JOB_ID").is_some());
        let remark = tasks.map(|tasks| {
            format!("SLURM_NTASKS={tasks}, but srun did not start this process: it runs alone; write `srun` before it")
        });
        Launch {
            rank: 0,
            world: 1,
            local_rank: 0,
            local_size: 1,
            host: self.host(),
            started_by: Starter::Nobody,
            by_mpi: false,
            rendezvous: None,
            job: String::new(),
            remark,
        }
    }
}

fn incomplete(starter: Starter, set: &[Option<&Said>], missing: &str) -> LaunchError {
    let set: Vec<String> = set.iter().flatten().map(ToString::to_string).collect();
    let verb = if set.len() == 1 { "is" } else { "are" };
    let missing = if missing.ends_with(" are") { missing.to_owned() } else { format!("{missing} is") };
    LaunchError::Incomplete { starter, set: format!("{} {verb}", set.join(", ")), missing }
}

fn half_a_master(set: String, missing: &str) -> LaunchError {
    LaunchError::Incomplete { starter: Starter::Torchrun, set: format!("{set} is"), missing: format!("{missing} is") }
}

fn own_rendezvous(address: String) -> Result<Rendezvous, LaunchError> {
    let parts = address.rsplit_once(':').and_then(|(host, port)| {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let is_host = !host.is_empty() && (!host.contains(':') || host.parse::<Ipv6Addr>().is_ok());
        port.parse().ok().filter(|port| *port > 0 && is_host).map(|port: u16| (host.to_owned(), port))
    });
    match parts {
        Some((host, port)) => Ok(Rendezvous { hosts: vec![host], ports: vec![port] }),
        None => Err(LaunchError::Malformed {
            variable: "CALOTYPE_RENDEZVOUS".to_owned(),
            value: address,
            problem: "it takes the address of rank 0 as host:port, such as node01:29500".to_owned(),
        }),
    }
}

/// The last port that leaves room for those behind it.
const LAST_PORT: u16 = u16::MAX - PORTS_TRIED;

fn port_wanted() -> String {
    format!("it takes a port from 1 to {LAST_PORT}")
}

/// torchrun's agent of rank 0 listens on `MASTER_PORT` itself; its children take the next free port.
fn master_rendezvous(host: String, port: &Said, agent_listens: bool) -> Result<Rendezvous, LaunchError> {
    let Some(first) = (1..=usize::from(LAST_PORT)).contains(&port.number).then_some(port.number as u16) else {
        let value = port.number.to_string();
        return Err(LaunchError::Malformed { variable: port.variable.to_owned(), value, problem: port_wanted() });
    };
    let ports = if agent_listens { (first + 1..=first + PORTS_TRIED).collect() } else { vec![first] };
    Ok(Rendezvous { hosts: vec![host], ports })
}

/// The first two launchers that say different things.
fn disagreement(all: &[Found]) -> Result<(), LaunchError> {
    let Some((first, others)) = all.split_first() else { return Ok(()) };
    for other in others {
        for (one, two) in first.numbers().into_iter().zip(other.numbers()) {
            if let (Some(one), Some(two)) = (one, two)
                && one.number != two.number
            {
                let of = format!("{} and {}", first.starter, other.starter);
                return Err(LaunchError::Disagree { first: one.to_string(), second: two.to_string(), of });
            }
        }
    }
    Ok(())
}

fn within(rank: &Said, world: &Said) -> Result<(), LaunchError> {
    match rank.number < world.number {
        true => Ok(()),
        false => Err(LaunchError::OutOfRange { rank: rank.to_string(), world: world.to_string() }),
    }
}

impl Launch {
    /// Reads the variables of this process.
    ///
    /// # Errors
    /// [`LaunchError`] if a launcher's variables are incomplete or no numbers, or if two launchers disagree.
    pub fn from_environment() -> Result<Self, LaunchError> {
        Self::from_variables(&|name| std::env::var(name).ok())
    }

    /// Reads variables by a function of their names.
    ///
    /// # Errors
    /// As [`Launch::from_environment`].
    pub fn from_variables(variables: &dyn Fn(&str) -> Option<String>) -> Result<Self, LaunchError> {
        let variables = Variables(variables);
        let all = variables.all_found()?;
        disagreement(&all)?;
        let Some(first) = all.first() else { return Ok(variables.alone()) };
        // Who says less than others is completed by them.
        let any = |number: usize| all.iter().find_map(|found| found.numbers()[number].cloned());
        let world = any(1).ok_or_else(|| {
            incomplete(first.starter, &first.numbers(), "the number of processes (CALOTYPE_WORLD_SIZE)")
        })?;
        if world.number > MOST_PROCESSES {
            let problem = format!("it takes the number of the run's processes, at most {MOST_PROCESSES}");
            let (variable, value) = (world.variable.to_owned(), world.number.to_string());
            return Err(LaunchError::Malformed { variable, value, problem });
        }
        within(&first.rank, &world)?;
        let (local_rank, local_size) = on_host(first, &world, any(2), any(3))?;
        let mut launch = Self {
            rank: first.rank.number,
            world: world.number,
            local_rank,
            local_size,
            host: variables.host(),
            started_by: first.starter,
            by_mpi: all.iter().any(|found| matches!(found.starter, Starter::OpenMpi | Starter::Pmi | Starter::Pmix)),
            rendezvous: None,
            job: variables.job(&all),
            remark: None,
        };
        launch.rendezvous = variables.rendezvous(&all, &launch)?;
        Ok(launch)
    }
}

/// The rank on the host and the number of processes there.
fn on_host(first: &Found, world: &Said, rank: Option<Said>, size: Option<Said>) -> Result<(usize, usize), LaunchError> {
    let missing = |number: usize| incomplete(first.starter, &first.numbers(), local_names(first.starter)[number]);
    let (rank, size) = match (rank, size) {
        (Some(rank), Some(size)) => (rank, size),
        _ if world.number == 1 => return Ok((0, 1)),
        (None, _) => return Err(missing(0)),
        (_, None) => return Err(missing(1)),
    };
    within(&rank, &size)?;
    match size.number <= world.number {
        true => Ok((rank.number, size.number)),
        false => Err(LaunchError::OutOfRange { rank: size.to_string(), world: world.to_string() }),
    }
}

/// The variables of the place on the host.
fn local_names(starter: Starter) -> [&'static str; 2] {
    match LAUNCHERS.iter().find(|names| names.starter == starter && !names.local_rank.is_empty()) {
        Some(names) => [names.local_rank, names.local_size],
        None if starter == Starter::Slurm => ["SLURM_LOCALID", slurm::TASKS_PER_NODE],
        None => ["CALOTYPE_LOCAL_RANK", "CALOTYPE_LOCAL_SIZE"],
    }
}
