//! One process of a run that checks, breaks or measures communication. Start it by any launcher:
//!
//!     mpirun -n 4 ranks check
//!     torchrun --nproc-per-node 4 --no-python ranks check
//!     mpirun -n 4 ranks fail 2 kill
//!     mpirun -n 2 ranks bench
//!
//! `check` prints hashes of sums that must be the same for 1, 2 and 4 processes. `fail RANK HOW` ends one process by `kill`,
//! `stop`, `panic`, `leave`, `abort`, `exit`, `drop` or another `call`; `busy` kills it while the one before it computes.
//! `bench [MIB]` prints rates, of reductions in buckets of that size.

use std::error::Error;
use std::io::Write;
use std::process::{Command, ExitCode, exit};
use std::sync::Arc;
use std::time::{Duration, Instant};

use calotype_collective::{
    BUCKET_BYTES, BucketPlan, Collective, Fingerprint, Launch, Local, Options, Order, Partition, Payload, Reporter,
    TransportKind, open,
};

type Outcome = Result<(), Box<dyn Error>>;

/// Time to end by itself after a failure.
const GRACE: Duration = Duration::from_secs(2);

/// Micro-batches of all processes in the checks.
const MICRO_BATCHES: usize = 8;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let started = Instant::now();
    let collective = match connect() {
        Ok(collective) => collective,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    collective.on_failure(Box::new(move |failure, reporter| {
        if reporter == Reporter::Here {
            say(started, &failure.to_string());
        }
        // Whoever computes and makes no call would go on.
        std::thread::spawn(|| {
            std::thread::sleep(GRACE);
            exit(1);
        });
    }));
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["check"] => check(&*collective),
        ["fail", rank, how] => fail(&*collective, rank, how),
        ["bench"] => bench(&*collective, BUCKET_BYTES),
        ["bench", mib] => mib.parse().map_err(Into::into).and_then(|mib: usize| bench(&*collective, mib << 20)),
        _ => Err("write `ranks check`, `ranks fail RANK HOW` or `ranks bench [MIB]`".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if collective.failure().is_none() {
                say(started, &error.to_string());
            }
            ExitCode::FAILURE
        }
    }
}

fn say(started: Instant, text: &str) {
    // In one piece, so that nothing of others comes between.
    let line = format!("error after {:.1} s: {text}\n", started.elapsed().as_secs_f32());
    let _ = std::io::stderr().write_all(line.as_bytes());
}

fn connect() -> Result<Box<dyn Collective>, Box<dyn Error>> {
    let launch = Launch::from_environment()?;
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let transport = match variable("RANKS_TRANSPORT").as_str() {
        "tcp" => Some(TransportKind::Tcp),
        "mpi" => Some(TransportKind::Mpi),
        _ => None,
    };
    let payload = if variable("RANKS_PAYLOAD") == "bf16" { Payload::Bf16 } else { Payload::F32 };
    let mut options = Options { transport, payload, ..Options::default() };
    if let Ok(seconds) = variable("RANKS_MEETING").parse() {
        options.patience.meeting = Duration::from_secs_f32(seconds);
    }
    if launch.rank == 0 {
        let kind = transport.unwrap_or_else(|| TransportKind::suits(&launch));
        println!("{} processes, started by {}, over {kind:?}", launch.world, launch.started_by);
    }
    Ok(open(&launch, &options)?)
}

/// A gradient whose sums depend on their order.
fn gradient(micro_batch: usize, parameter: usize, length: usize) -> Vec<f32> {
    let value = |i: usize| ((micro_batch * 131 + parameter * 17 + i) as f32 * 0.37).sin() * 2f32.powi((i % 13) as i32);
    (0..length).map(value).collect()
}

const LENGTHS: [usize; 6] = [5, 70_000, 1, 300, 40_000, 9];

/// The sums of all micro-batches, in an order that does not depend on the processes.
fn reduce(collective: &dyn Collective) -> Result<Vec<f32>, Box<dyn Error>> {
    let plan = Arc::new(BucketPlan::new(&LENGTHS, 100_000));
    let mut reduction = collective.start_reduction(&plan, Order::MicroBatches { all: MICRO_BATCHES })?;
    let (rank, world) = (collective.rank(), collective.world());
    for micro_batch in MICRO_BATCHES * rank / world..MICRO_BATCHES * (rank + 1) / world {
        for (parameter, length) in LENGTHS.into_iter().enumerate() {
            reduction.ready(parameter, &gradient(micro_batch, parameter, length))?;
        }
        reduction.end_micro_batch()?;
    }
    Ok(reduction.finish()?.flat().collect())
}

/// Sums over pairs, then over those in the same place of all pairs.
fn check_groups(collective: &dyn Collective) -> Outcome {
    let (rank, world) = (collective.rank(), collective.world());
    let first = rank / 2 * 2;
    let pair = collective.split(&[first, first + 1])?;
    let others = collective.split(&(rank % 2..world).step_by(2).collect::<Vec<_>>())?;
    let mut values = vec![rank as f32; 3_000_000];
    pair.all_reduce_sum(&mut values)?;
    let of_pair = values.iter().all(|value| *value == (2 * first + 1) as f32);
    others.all_reduce_sum(&mut values)?;
    match of_pair && values.iter().all(|value| *value == (world * (world - 1) / 2) as f32) {
        true => Ok(()),
        false => Err("sums of groups are wrong".into()),
    }
}

fn check(collective: &dyn Collective) -> Outcome {
    let (rank, world) = (collective.rank(), collective.world());
    let sums = reduce(collective)?;
    if sums != reduce(collective)? || sums != reduce(&Local)? {
        return Err("sums of micro-batches differ".into());
    }
    let mut values = vec![rank as f32 + 1.0; 100_000];
    collective.all_reduce_sum(&mut values)?;
    if values.iter().any(|value| *value != (world * (world + 1) / 2) as f32) {
        return Err("sums of ranks are wrong".into());
    }
    if world.is_multiple_of(2) {
        check_groups(collective)?;
    }
    let gathered = collective.all_gather(&vec![rank as f32; rank])?;
    if !gathered.iter().enumerate().all(|(rank, values)| *values == vec![rank as f32; rank]) {
        return Err("gathered values are wrong".into());
    }
    let mut bytes = if rank == world - 1 { b"from the last".to_vec() } else { Vec::new() };
    collective.broadcast(world - 1, &mut bytes)?;
    let told = collective.gather_bytes(0, &[bytes.as_slice(), &[rank as u8]].concat())?;
    if rank == 0 && !told.iter().enumerate().all(|(rank, told)| told.ends_with(&[b't', rank as u8])) {
        return Err("broadcast or gathered bytes are wrong".into());
    }
    let partition = Partition::by_size(&LENGTHS, world);
    let own = |parameter: usize| vec![parameter as f32; LENGTHS[parameter]];
    let mut parameters = vec![Vec::new(); LENGTHS.len()];
    partition.share(collective, own, |parameter, values| parameters[parameter] = values.to_vec())?;
    if parameters.iter().enumerate().any(|(i, values)| values.iter().any(|value| *value != i as f32)) {
        return Err("shared parameters are wrong".into());
    }
    let bytes: Vec<u8> = sums.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut fingerprint = Fingerprint::default();
    fingerprint.add("sums", &bytes);
    fingerprint.check_same(collective)?;
    collective.barrier()?;
    if rank == 0 {
        let hash = bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        println!("sums of {MICRO_BATCHES} micro-batches: {hash:016x}");
    }
    Ok(())
}

/// All sum until one of them ends.
fn fail(collective: &dyn Collective, rank: &str, how: &str) -> Outcome {
    let rank = rank.parse::<usize>()?;
    let mut values = vec![1.0; 50_000];
    for _ in 0..5 {
        collective.all_reduce_sum(&mut values)?;
        values.fill(1.0);
    }
    if rank == collective.rank() {
        end(collective, how)?;
    } else if how == "busy" && rank == collective.rank() + 1 {
        std::thread::sleep(Duration::from_secs(60));
        return Err("the failure was not noticed during a minute of computing".into());
    }
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(60) {
        collective.all_reduce_sum(&mut values)?;
        values.fill(1.0);
        std::thread::sleep(Duration::from_millis(5));
    }
    Err("nothing was noticed for a minute".into())
}

fn end(collective: &dyn Collective, how: &str) -> Outcome {
    let signal = |name: &str| Command::new("kill").args([name, &std::process::id().to_string()]).status();
    match how {
        "kill" | "busy" => drop(signal("-KILL")?),
        "stop" => drop(signal("-STOP")?),
        "panic" => panic!("as asked"),
        "exit" => exit(3),
        "leave" => return Err("this rank leaves".into()),
        "abort" => {
            collective.abort("the loss is not finite");
            return Err("this rank gave up".into());
        }
        "drop" => {
            drop(collective.start_reduction(&Arc::new(BucketPlan::new(&[3], 12)), Order::Ranks { micro_batches: 1 })?)
        }
        "call" => collective.barrier()?,
        _ => return Err(format!("there is no way `{how}` to fail").into()),
    }
    std::thread::sleep(Duration::from_millis(200));
    Ok(())
}

/// Rates of sums, by size: bytes of the values over the time of a call, and what each process sends.
fn bench(collective: &dyn Collective, bucket_bytes: usize) -> Outcome {
    for kib in [4, 64, 1024, 4 * 1024, 16 * 1024, 64 * 1024] {
        let mut values = vec![1.0; kib * 256];
        let rounds = (256 * 1024 / kib).clamp(4, 200);
        let mut seconds = Vec::new();
        for _ in 0..rounds {
            collective.barrier()?;
            let started = Instant::now();
            collective.all_reduce_sum(&mut values)?;
            seconds.push(started.elapsed().as_secs_f64());
            values.fill(1.0);
        }
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        if collective.is_first() {
            let rate = kib as f64 * 1024.0 / median / 1e9;
            println!("all_reduce_sum {kib:>6} KiB: {:>9.3} ms, {rate:>6.2} GB/s", median * 1e3);
        }
    }
    let before = collective.counters();
    let plan = Arc::new(BucketPlan::new(&[1 << 18; 128], bucket_bytes));
    let mut reduction = collective.start_reduction(&plan, Order::Ranks { micro_batches: 1 })?;
    let started = Instant::now();
    let values = vec![1.0; 1 << 18];
    for parameter in 0..plan.parameters() {
        // A backward pass that takes its time.
        std::thread::sleep(Duration::from_millis(3));
        reduction.ready(parameter, &values)?;
    }
    reduction.finish()?;
    let counters = collective.counters().since(&before);
    if collective.is_first() {
        println!(
            "reduction of 128 MiB in {} buckets: {:.3} s, communicating {:.3} s, waiting {:.3} s, {:.0} % hidden, {:.1} MB sent",
            plan.buckets(),
            started.elapsed().as_secs_f64(),
            counters.communicating.as_secs_f64(),
            counters.waiting.as_secs_f64(),
            100.0 * counters.overlap().unwrap_or(1.0),
            counters.sent_bytes as f64 / 1e6
        );
    }
    Ok(())
}
