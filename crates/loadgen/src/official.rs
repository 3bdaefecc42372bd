//! LoadGen itself, behind `shim.cc`.

use crate::conf::{Effective, UserConf};
use crate::responder::Responder;
use crate::{Ended, LOG_FILES, Library, LoadgenError, MODEL, Mode, Sample, Scenario, Settings, System};
use std::ffi::{CStr, CString, c_char, c_void};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// How often the system is asked to watch, and a failure is noticed.
const WATCH: Duration = Duration::from_millis(20);

#[repr(C)]
struct RawSettings {
    model: *const c_char,
    scenario: i32,
    mode: i32,
    user_conf: *const c_char,
    audit_conf: *const c_char,
    out: *const c_char,
    trace: i32,
    has_seeds: i32,
    seeds: [u64; 3],
}

#[repr(C)]
struct RawValues {
    min_duration_ms: u64,
    max_duration_ms: u64,
    min_query_count: u64,
    max_query_count: u64,
    performance_sample_count: u64,
    samples_per_query: u64,
    target_latency_ns: u64,
    target_qps: f64,
    target_latency_percentile: f64,
}

#[repr(C)]
struct RawCalls {
    data: *mut c_void,
    system_name: *const c_char,
    library_name: *const c_char,
    total: u64,
    performance: u64,
    issue: extern "C" fn(*mut c_void, *const Sample, usize) -> i32,
    flush: extern "C" fn(*mut c_void),
    load: extern "C" fn(*mut c_void, *const u64, usize),
    unload: extern "C" fn(*mut c_void, *const u64, usize),
    configured: extern "C" fn(*mut c_void, *const RawValues) -> i32,
}

// SAFETY: the declarations are those of `shim.cc`, field by field.
unsafe extern "C" {
    fn calotype_loadgen_run(
        settings: *const RawSettings,
        calls: *const RawCalls,
        message: *mut c_char,
        message_size: usize,
    ) -> i32;
    fn calotype_loadgen_complete(id: u64, data: *const u8, size: usize);
    fn calotype_loadgen_flush();
    fn calotype_loadgen_version() -> *const c_char;
    fn calotype_loadgen_revision() -> *const c_char;
    fn calotype_loadgen_leave(code: i32);
}

const DONE: i32 = 0;
const ENDED: i32 = 1;
const CONFIGURATION: i32 = 2;
const REFUSED: i32 = 4;

pub(crate) fn version() -> String {
    // SAFETY: both return static C strings.
    let text = |pointer| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned();
    // SAFETY: no arguments, and no state but static strings.
    let (release, revision) = unsafe { (calotype_loadgen_version(), calotype_loadgen_revision()) };
    format!("{} ({})", text(release), text(revision))
}

pub(crate) fn leave(code: i32) {
    // SAFETY: ends the process.
    unsafe { calotype_loadgen_leave(code) }
}

/// What the callbacks work with. It lives until LoadGen has returned.
struct Context {
    system: Arc<dyn System>,
    library: Arc<dyn Library>,
    responder: Arc<Responder>,
    expected: Effective,
    /// Why the values were refused.
    differs: Mutex<Option<(&'static str, String, String)>>,
    /// When the first query came.
    first: Mutex<Option<Instant>>,
}

impl Context {
    /// The context behind LoadGen's pointer.
    ///
    /// # Safety
    /// `data` is the pointer that [`call`] gave LoadGen, whose call has not returned.
    unsafe fn of<'a>(data: *mut c_void) -> &'a Self {
        // SAFETY: the pointer is that of a context which `call` keeps alive, and which is only shared.
        unsafe { &*data.cast::<Self>() }
    }

    /// Does something on LoadGen's thread. A panic must not unwind into C++: it fails the run.
    fn guarded(&self, work: impl FnOnce()) {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            self.responder
                .fail("the system under test panicked; this is a fault of the program, and the text above says where");
        }
    }

    /// Compares what LoadGen read with what was expected.
    fn check(&self, values: &RawValues) -> bool {
        let ours = &self.expected;
        // LoadGen multiplies a percentile by 0.01; the last bit may differ.
        let near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * a.abs().max(1.0);
        let rows: [(&'static str, bool, String, String); 9] = [
            integer("min_duration", values.min_duration_ms, ours.min_duration_ms),
            integer("max_duration", values.max_duration_ms, ours.max_duration_ms),
            integer("min_query_count", values.min_query_count, ours.min_query_count),
            integer("max_query_count", values.max_query_count, ours.max_query_count),
            integer(
                "performance_sample_count_override",
                values.performance_sample_count,
                ours.performance_sample_count,
            ),
            integer("samples_per_query", values.samples_per_query, ours.samples_per_query),
            integer("target_latency", values.target_latency_ns, ours.target_latency_ns),
            float("target_qps", values.target_qps, ours.target_qps, near),
            float("target_latency_percentile", values.target_latency_percentile, ours.target_latency_percentile, near),
        ];
        let found = rows.into_iter().find(|(_, same, _, _)| !same);
        *self.differs.lock().unwrap_or_else(PoisonError::into_inner) =
            found.as_ref().map(|(key, _, theirs, ours)| (*key, theirs.clone(), ours.clone()));
        found.is_none()
    }
}

fn integer(key: &'static str, theirs: u64, ours: u64) -> (&'static str, bool, String, String) {
    (key, theirs == ours, theirs.to_string(), ours.to_string())
}

fn float(
    key: &'static str,
    theirs: f64,
    ours: f64,
    same: impl Fn(f64, f64) -> bool,
) -> (&'static str, bool, String, String) {
    (key, same(theirs, ours), theirs.to_string(), ours.to_string())
}

/// A slice of what LoadGen hands over.
///
/// # Safety
/// `count` elements lie at `items` for as long as the callback runs, or `count` is 0.
unsafe fn slice<'a, T>(items: *const T, count: usize) -> &'a [T] {
    // SAFETY: as the caller promises.
    if count == 0 { &[] } else { unsafe { std::slice::from_raw_parts(items, count) } }
}

extern "C" fn issue(data: *mut c_void, samples: *const Sample, count: usize) -> i32 {
    // SAFETY: LoadGen calls back with the pointer that it was given, and with a vector's elements.
    let (context, samples) = unsafe { (Context::of(data), slice(samples, count)) };
    context.first.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(Instant::now);
    if context.responder.failure().is_some() {
        // The samples of this query go down with LoadGen's own; nothing is handed over behind it.
        context.responder.close_flushed();
        return 1;
    }
    context.responder.issued(samples.iter().map(|sample| sample.id));
    context.guarded(|| context.system.issue(samples, &context.responder));
    0
}

extern "C" fn flush(data: *mut c_void) {
    // SAFETY: as in `issue`.
    let context = unsafe { Context::of(data) };
    context.guarded(|| context.system.flush());
}

extern "C" fn load(data: *mut c_void, samples: *const u64, count: usize) {
    // SAFETY: as in `issue`.
    let (context, samples) = unsafe { (Context::of(data), slice(samples, count)) };
    context.guarded(|| context.library.load(samples));
}

extern "C" fn unload(data: *mut c_void, samples: *const u64, count: usize) {
    // SAFETY: as in `issue`.
    let (context, samples) = unsafe { (Context::of(data), slice(samples, count)) };
    context.guarded(|| context.library.unload(samples));
}

extern "C" fn configured(data: *mut c_void, values: *const RawValues) -> i32 {
    // SAFETY: as in `issue`; the values live on the caller's stack.
    let (context, values) = unsafe { (Context::of(data), &*values) };
    context.check(values).into()
}

/// A path or name as C takes it.
fn c_text(text: &Path) -> Result<CString, LoadgenError> {
    CString::new(text.as_os_str().as_encoded_bytes()).map_err(|error| LoadgenError::Folder {
        path: text.to_owned(),
        source: std::io::Error::other(error.to_string()),
    })
}

/// The strings that LoadGen is given, which live as long as it runs.
struct Texts {
    model: CString,
    user_conf: CString,
    audit_conf: CString,
    out: CString,
    system: CString,
    library: CString,
}

/// Calls LoadGen on this thread, and says what it returned, with what it threw.
fn call(settings: &Settings, texts: &Texts, context: &Context) -> (i32, String) {
    let scenario = match settings.scenario {
        Scenario::SingleStream => 0,
        Scenario::MultiStream => 1,
        Scenario::Server => 2,
        Scenario::Offline => 3,
    };
    let mode = match settings.mode {
        Mode::Accuracy => 1,
        Mode::Performance => 2,
        Mode::FindPeak => 3,
    };
    let raw = RawSettings {
        model: texts.model.as_ptr(),
        scenario,
        mode,
        user_conf: texts.user_conf.as_ptr(),
        audit_conf: texts.audit_conf.as_ptr(),
        out: texts.out.as_ptr(),
        trace: settings.trace.into(),
        has_seeds: settings.seeds.is_some().into(),
        seeds: settings.seeds.map_or([0; 3], |seeds| [seeds.library, seeds.sample, seeds.schedule]),
    };
    let calls = RawCalls {
        data: std::ptr::from_ref(context).cast_mut().cast(),
        system_name: texts.system.as_ptr(),
        library_name: texts.library.as_ptr(),
        total: context.library.total() as u64,
        performance: context.library.performance() as u64,
        issue,
        flush,
        load,
        unload,
        configured,
    };
    let mut message = [0 as c_char; 512];
    // SAFETY: all pointers are to values that live on this stack until the call returns; the callbacks take the context as shared.
    let code = unsafe { calotype_loadgen_run(&raw, &calls, message.as_mut_ptr(), message.len()) };
    // SAFETY: the shim ends the text with a zero, and the buffer was all zeros.
    let message = unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned();
    (code, message)
}

pub(crate) fn run(
    settings: &Settings,
    system: &Arc<dyn System>,
    library: &Arc<dyn Library>,
) -> Result<Ended, LoadgenError> {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if settings.mode == Mode::FindPeak && settings.scenario != Scenario::Server {
        return Err(LoadgenError::NoPeak(settings.scenario.official()));
    }
    if STARTED.load(Ordering::SeqCst) {
        return Err(LoadgenError::Again);
    }
    if let Some(path) = settings.audit_conf.clone().filter(|path| !path.is_file()) {
        return Err(LoadgenError::Unread { path });
    }
    let conf = UserConf::read(&settings.user_conf)?;
    let logs = LOG_FILES.map(|name| settings.out.join(name));
    for path in &logs {
        File::create(path).map_err(|source| LoadgenError::Folder { path: path.clone(), source })?;
    }
    // LoadGen takes a file `audit.config` of the current folder unless it is told of another one.
    let none = settings.out.join("no-audit.config");
    let name = |text: &str| CString::new(text.replace('\0', " ")).unwrap_or_default();
    let texts = Texts {
        model: name(MODEL),
        user_conf: c_text(&settings.user_conf)?,
        audit_conf: c_text(settings.audit_conf.as_ref().unwrap_or(&none))?,
        out: c_text(&settings.out)?,
        system: name(system.name()),
        library: name(library.name()),
    };
    if STARTED.swap(true, Ordering::SeqCst) {
        return Err(LoadgenError::Again);
    }
    let (responder, deliveries) = Responder::new();
    let responder = Arc::new(responder);
    let handing = {
        let responder = Arc::clone(&responder);
        // SAFETY: ids are those of outstanding samples, which LoadGen keeps until they are answered, and each is answered once.
        let deliver = |id: u64, data: &[u8]| unsafe { calotype_loadgen_complete(id, data.as_ptr(), data.len()) };
        // SAFETY: called while LoadGen runs, on the thread that hands answers over.
        let flush = || unsafe { calotype_loadgen_flush() };
        let work = move || responder.hand_over(&deliveries, deliver, flush);
        Builder::new().name("answers".to_owned()).spawn(work).map_err(LoadgenError::Thread)?
    };
    let context = Arc::new(Context {
        system: Arc::clone(system),
        library: Arc::clone(library),
        responder: Arc::clone(&responder),
        expected: Effective::of(settings.scenario, &conf),
        differs: Mutex::new(None),
        first: Mutex::new(None),
    });
    let (sender, returned) = channel();
    let loadgen = {
        let (settings, context) = (settings.clone(), Arc::clone(&context));
        let work = move || sender.send(call(&settings, &texts, &context));
        Builder::new().name("loadgen".to_owned()).spawn(work).map_err(LoadgenError::Thread)?
    };
    let mut failed_at: Option<Instant> = None;
    let (code, thrown) = loop {
        match returned.recv_timeout(WATCH) {
            Ok(found) => break found,
            Err(RecvTimeoutError::Disconnected) => break (-1, "its thread ended".to_owned()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        system.watch(&responder);
        if let Some(failure) = responder.failure() {
            let since = failed_at.get_or_insert_with(Instant::now).elapsed();
            if since > settings.grace {
                return Err(LoadgenError::Abandoned { failure, seconds: since.as_secs_f64() });
            }
        }
    };
    let measured =
        context.first.lock().unwrap_or_else(PoisonError::into_inner).map_or(Duration::ZERO, |at| at.elapsed());
    responder.close();
    // Neither can panic: their work is LoadGen's and ours above.
    let _ = (handing.join(), loadgen.join());
    if let Some(failure) = responder.failure() {
        return Err(LoadgenError::Failed(failure));
    }
    let path = settings.user_conf.clone();
    match code {
        DONE => {}
        CONFIGURATION => return Err(LoadgenError::Unread { path }),
        REFUSED => {
            let (key, theirs, ours) =
                context.differs.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default();
            return Err(LoadgenError::Differs { path, key, theirs, ours });
        }
        ENDED => return Err(LoadgenError::Thrown("it was left without a reason".to_owned())),
        _ => return Err(LoadgenError::Thrown(thrown)),
    }
    let [summary, detail, ..] = logs;
    for path in [summary, detail] {
        if std::fs::metadata(&path).map_or(0, |file| file.len()) == 0 {
            return Err(LoadgenError::NoLog { path });
        }
    }
    Ok(Ended { answered: responder.answered(), refused: responder.refused(), measured })
}
