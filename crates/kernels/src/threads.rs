//! A parallel-for over a small pool of threads of its own.
//!
//! Work is cut into tasks by the caller, from shapes alone; which thread runs a task never matters to a result.

use std::any::Any;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most threads that [`set_threads`] accepts.
const MOST_THREADS: usize = 1024;

/// The time that an idle worker, or a caller waiting for its workers, looks before it sleeps.
const SPIN: Duration = Duration::from_micros(40);

/// 0 stands for "not decided yet".
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// Number of threads that [`parallel_for`] may use, counting the one that calls it.
///
/// Decided at the first use: the environment variable `CALOTYPE_THREADS` if it holds a positive number, otherwise the
/// parallelism the system offers to this process.
pub fn threads() -> usize {
    match THREADS.load(Ordering::Relaxed) {
        0 => {
            let wanted = std::env::var("CALOTYPE_THREADS").ok().and_then(|text| text.trim().parse().ok());
            let wanted = wanted.filter(|&n: &usize| n > 0);
            let n = wanted.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
            set_threads(n);
            n.clamp(1, MOST_THREADS)
        }
        n => n,
    }
}

/// Sets the number of threads for the calls that follow. Results do not depend on it.
pub fn set_threads(n: usize) {
    THREADS.store(n.clamp(1, MOST_THREADS), Ordering::Relaxed);
}

thread_local! {
    /// True while this thread runs a task, so that a nested call runs inline.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// One call of [`parallel_for`]; lives on the stack of the caller.
struct Job {
    run: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job {
    /// Takes tasks until none is left.
    ///
    /// # Safety
    ///
    /// `self.run` must point to a live closure during the whole call.
    unsafe fn work(&self) {
        // SAFETY: the caller of this function promises that the closure lives.
        let run = unsafe { &*self.run };
        INSIDE.set(true);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= self.tasks {
                    break;
                }
                run(task);
            }
        }));
        INSIDE.set(false);
        if let Err(payload) = outcome {
            self.next.fetch_add(self.tasks, Ordering::Relaxed);
            lock(&self.panic).get_or_insert(payload);
        }
    }
}

/// The state that the workers share. `job` is only a valid pointer while it is present here or `active` counts its users.
struct State {
    job: Option<*const Job>,
    places: usize,
    active: usize,
    workers: usize,
    sleepers: usize,
    caller_sleeps: bool,
}

// SAFETY: the pointer is only followed under the rules written at `State::job`; the job itself is shared by reference
// and made of `Sync` parts.
unsafe impl Send for State {}

struct Pool {
    state: Mutex<State>,
    wake: Condvar,
    done: Condvar,
    /// Goes up with every job; what idle workers look at.
    posted: AtomicUsize,
    /// Copy of `State::active` that a waiting caller can look at without the lock.
    active: AtomicUsize,
    /// Held by the one caller that uses the workers.
    caller: Mutex<()>,
}

static POOL: Pool = Pool {
    state: Mutex::new(State { job: None, places: 0, active: 0, workers: 0, sleepers: 0, caller_sleeps: false }),
    wake: Condvar::new(),
    done: Condvar::new(),
    posted: AtomicUsize::new(0),
    active: AtomicUsize::new(0),
    caller: Mutex::new(()),
};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks until `ready` is true, at most [`SPIN`] long.
fn spin_until(ready: impl Fn() -> bool) -> bool {
    for _ in 0..64 {
        if ready() {
            return true;
        }
        std::hint::spin_loop();
    }
    let begin = Instant::now();
    loop {
        for _ in 0..16 {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if begin.elapsed() > SPIN {
            return false;
        }
    }
}

fn worker() {
    let mut seen = 0;
    loop {
        spin_until(|| POOL.posted.load(Ordering::Acquire) != seen);
        let mut state = lock(&POOL.state);
        while POOL.posted.load(Ordering::Acquire) == seen {
            state.sleepers += 1;
            state = POOL.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.sleepers -= 1;
        }
        seen = POOL.posted.load(Ordering::Acquire);
        let Some(job) = state.job.filter(|_| state.places > 0) else { continue };
        state.places -= 1;
        state.active += 1;
        POOL.active.store(state.active, Ordering::Release);
        drop(state);
        // SAFETY: the job was present in the state, so its caller is still inside `parallel_for`, which does not return
        // before `active` is zero again; this thread is counted in `active` until after its last use of the job.
        unsafe { (*job).work() };
        let mut state = lock(&POOL.state);
        state.active -= 1;
        POOL.active.store(state.active, Ordering::Release);
        if state.active == 0 && state.caller_sleeps {
            POOL.done.notify_all();
        }
    }
}

/// Runs `f(0)`, `f(1)`, … `f(tasks - 1)`, each exactly once, on at most [`threads`] threads, and returns when all are
/// done.
///
/// The calling thread takes part. Runs inline with one thread or one task, inside another parallel-for, and while
/// another thread is using the pool. A panic of a task is passed on after the other tasks have stopped.
pub fn parallel_for(tasks: usize, f: impl Fn(usize) + Sync) {
    let wanted = threads().min(tasks);
    let turn = if wanted <= 1 || INSIDE.get() { None } else { POOL.caller.try_lock().ok() };
    let Some(_turn) = turn else {
        for task in 0..tasks {
            f(task);
        }
        return;
    };
    let run: &(dyn Fn(usize) + Sync) = &f;
    // SAFETY: only the lifetime is changed; the pointer is followed solely while this call is running, see below.
    let run = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(run) };
    let job = Job { run, tasks, next: AtomicUsize::new(0), panic: Mutex::new(None) };
    let mut state = lock(&POOL.state);
    while state.workers + 1 < wanted {
        let builder = std::thread::Builder::new().name(format!("calotype-{}", state.workers + 1));
        // A system that refuses a thread still gets its result, from fewer threads.
        if builder.spawn(worker).is_err() {
            break;
        }
        state.workers += 1;
    }
    state.job = Some(&job);
    state.places = wanted - 1;
    POOL.posted.fetch_add(1, Ordering::Release);
    if state.sleepers > 0 {
        POOL.wake.notify_all();
    }
    drop(state);

    // SAFETY: `f` outlives this call.
    unsafe { job.work() };

    // Nobody may join any more; whoever did is counted in `active`.
    let mut state = lock(&POOL.state);
    state.job = None;
    if state.active > 0 {
        drop(state);
        spin_until(|| POOL.active.load(Ordering::Acquire) == 0);
        state = lock(&POOL.state);
        state.caller_sleeps = true;
        while state.active > 0 {
            state = POOL.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.caller_sleeps = false;
    }
    drop(state);
    let panic = lock(&job.panic).take();
    drop(_turn);
    if let Some(payload) = panic {
        resume_unwind(payload);
    }
}

/// A mutable slice that several tasks write to, each in its own place.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a shared reference only gives access through `range`, whose contract forbids overlap between threads.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: like `&mut [T]`.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// The part `range` of the slice.
    ///
    /// # Safety
    ///
    /// No two ranges that are alive at the same time may overlap.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "range {range:?} of {}", self.len);
        // SAFETY: inside the slice by the check above; not aliased by the contract of this function.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.end - range.start) }
    }
}

/// Runs `f(i, chunk)` for the pieces of `chunk` elements of `data` (the last one may be shorter).
pub(crate) fn for_chunks<T: Send>(data: &mut [T], chunk: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let len = data.len();
    let shared = SharedMut::new(data);
    parallel_for(len.div_ceil(chunk), |i| {
        // SAFETY: pieces with different numbers do not overlap.
        f(i, unsafe { shared.range(i * chunk..((i + 1) * chunk).min(len)) });
    });
}

/// [`for_chunks`] over two slices that have the same number of pieces.
pub(crate) fn for_chunks2<A: Send, B: Send>(
    a: (&mut [A], usize),
    b: (&mut [B], usize),
    f: impl Fn(usize, &mut [A], &mut [B]) + Sync,
) {
    let (la, lb) = (a.0.len(), b.0.len());
    let pieces = la.div_ceil(a.1);
    assert_eq!(pieces, lb.div_ceil(b.1), "slices with different numbers of pieces");
    let (sa, sb) = (SharedMut::new(a.0), SharedMut::new(b.0));
    parallel_for(pieces, |i| {
        // SAFETY: pieces with different numbers do not overlap.
        let (pa, pb) =
            unsafe { (sa.range(i * a.1..((i + 1) * a.1).min(la)), sb.range(i * b.1..((i + 1) * b.1).min(lb))) };
        f(i, pa, pb);
    });
}

/// [`for_chunks`] over three slices that have the same number of pieces.
pub(crate) fn for_chunks3<A: Send, B: Send, C: Send>(
    a: (&mut [A], usize),
    b: (&mut [B], usize),
    c: (&mut [C], usize),
    f: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync,
) {
    let lc = c.0.len();
    assert_eq!(a.0.len().div_ceil(a.1), lc.div_ceil(c.1), "slices with different numbers of pieces");
    let sc = SharedMut::new(c.0);
    for_chunks2(a, b, |i, pa, pb| {
        // SAFETY: pieces with different numbers do not overlap.
        f(i, pa, pb, unsafe { sc.range(i * c.1..((i + 1) * c.1).min(lc)) });
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_with_any_number_of_threads() {
        for n in [1, 2, 3, 8] {
            set_threads(n);
            for tasks in [0, 1, 2, 7, 1000] {
                let mut hits = vec![0u32; tasks];
                for_chunks(&mut hits, 1, |_, hit| hit[0] += 1);
                assert!(hits.iter().all(|&hit| hit == 1));
            }
        }
    }

    #[test]
    fn nested_and_concurrent_calls() {
        set_threads(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        parallel_for(9, |i| {
                            parallel_for(5, |j| {
                                sum.fetch_add(i * 5 + j, Ordering::Relaxed);
                            });
                        });
                        assert_eq!(sum.into_inner(), 44 * 45 / 2);
                    }
                });
            }
        });
    }

    #[test]
    fn panics_reach_the_caller_and_the_pool_survives() {
        set_threads(3);
        for _ in 0..20 {
            let result = catch_unwind(|| {
                parallel_for(50, |i| assert!(i != 17, "task seventeen"));
            });
            assert!(result.is_err());
            let count = AtomicUsize::new(0);
            parallel_for(50, |_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 50);
        }
    }
}
