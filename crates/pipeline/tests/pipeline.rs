//! Pipelines on tiny checkpoints of random weights.

mod few_steps;
#[path = "it/quantise.rs"]
mod quantise;

use burn::tensor::{Device, Tensor, TensorData};
use calotype_checkpoints::Checkpoint;
use calotype_data::image::{DecodeOptions, RgbImage, RgbaImage};
use calotype_diffusion::Caching;
use calotype_models::{Init, UNetConfig};
use calotype_ops::Precision;
use calotype_pipeline::images::{is_preview, write_next_png, write_png, write_preview};
use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
use calotype_pipeline::{
    CutPrompt, DrawnImage, GenerationRecord, LoadOptions, NoiseKind, Observer, Pipeline, PipelineError, Recorded,
    RecordedRequest, Refiner, Request, SamplerChoice, Settings, StartImage, Step,
};
#[cfg(target_os = "linux")]
use rustix::fs::inotify;
#[cfg(target_os = "linux")]
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use tempfile::TempDir;

/// A folder that all tests read.
static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = tempfile::tempdir().unwrap();
    RandomCheckpoint::new(RandomFamily::Tiny).write(folder.path()).unwrap();
    folder
});

fn checkpoint() -> Checkpoint {
    Checkpoint::open(FOLDER.path()).unwrap()
}

fn load(precision: Precision) -> Pipeline {
    Pipeline::load(&checkpoint(), &LoadOptions { precision, ..LoadOptions::default() }).unwrap()
}

fn request(prompt: &str, seed: u64, guidance: f32) -> Request {
    Request { seed, guidance: Some(guidance), ..Request::new(prompt) }
}

fn settings(steps: usize, batch: usize) -> Settings {
    Settings { steps, batch, ..Settings::default() }
}

/// Pixels as they come, before they are rounded to levels.
#[derive(Default)]
struct Pixels {
    images: Vec<Vec<u32>>,
    cut: Vec<CutPrompt>,
    steps: usize,
    most_images: usize,
    most_steps: usize,
}

impl Pixels {
    fn endless() -> Self {
        Self { most_images: usize::MAX, most_steps: usize::MAX, ..Self::default() }
    }
}

impl Observer for Pixels {
    fn prompt_cut(&mut self, cut: &CutPrompt) {
        self.cut.push(cut.clone());
    }

    fn step(&mut self, step: &Step<'_>) {
        assert_eq!(step.preview(0).dims(), [8, 8, 3]);
        self.steps += 1;
    }

    fn image(&mut self, image: &DrawnImage<'_>) {
        assert_eq!(image.index, self.images.len(), "images come in the order of their requests");
        self.images.push(image.pixels.to_data().iter::<f32>().map(f32::to_bits).collect());
    }

    fn go_on(&mut self) -> bool {
        self.images.len() < self.most_images && self.steps < self.most_steps
    }
}

fn draw(pipeline: &Pipeline, requests: &[Request], settings: &Settings) -> Vec<Vec<u32>> {
    let mut pixels = Pixels::endless();
    pipeline.generate(requests, settings, &mut pixels).unwrap();
    pixels.images
}

fn start(seed: u32, masked: bool) -> Arc<StartImage> {
    let device = Device::flex();
    let values: Vec<f32> = (0..64 * 64 * 3).map(|i| ((i as u32 * (seed + 7)) % 255) as f32 / 127.5 - 1.0).collect();
    let mask: Vec<f32> = (0..64 * 64).map(|i| f32::from(u8::from(i % 64 < 20 + seed as usize))).collect();
    Arc::new(StartImage {
        pixels: Tensor::from_data(TensorData::new(values, [1, 64, 64, 3]), &device),
        mask: masked.then(|| Tensor::from_data(TensorData::new(mask, [1, 64, 64, 1]), &device)),
    })
}

/// Each request alone, and all of them in batches of several sizes, forwards and backwards.
fn assert_independent_of_batch(pipeline: &Pipeline, requests: &[Request], settings: &Settings) {
    let alone: Vec<_> = requests.iter().flat_map(|r| draw(pipeline, std::slice::from_ref(r), settings)).collect();
    let backwards: Vec<Request> = requests.iter().rev().cloned().collect();
    for batch in [2, 3, 5] {
        let settings = Settings { batch, ..settings.clone() };
        let mut reversed = draw(pipeline, &backwards, &settings);
        reversed.reverse();
        for together in [draw(pipeline, requests, &settings), reversed] {
            for (number, (a, b)) in alone.iter().zip(&together).enumerate() {
                let differ = a.iter().zip(b).filter(|(a, b)| a != b).count();
                assert_eq!(differ, 0, "request {number} in batches of {batch}, {:?}", pipeline.dtype());
            }
        }
    }
    assert_ne!(alone[0], alone[1]);
}

#[test]
fn an_image_is_the_same_bits_whatever_batch_it_is_in() {
    assert_images_independent_of_batch(Precision::F32);
}

#[test]
fn an_image_is_the_same_bits_whatever_batch_it_is_in_in_bf16() {
    assert_images_independent_of_batch(Precision::Bf16);
}

fn assert_images_independent_of_batch(precision: Precision) {
    let mixed = |change: &dyn Fn(usize, &mut Request)| -> Vec<Request> {
        let plain =
            [("a cat", 3, 7.5), ("two boats on a lake", 3, 1.0), ("", 8, 0.5), ("a cat", 9, 3.0), ("dogs", 1, 7.5)];
        let of = |(number, (prompt, seed, guidance)): (usize, (&str, u64, f32))| {
            let mut request = Request { number: number as u64 % 2, ..request(prompt, seed, guidance) };
            change(number, &mut request);
            request
        };
        plain.into_iter().enumerate().map(of).collect()
    };
    let pipeline = load(precision);
    let negatives = mixed(&|number, request| request.negative = (number == 0).then(|| "a dog".to_owned()));
    assert_independent_of_batch(&pipeline, &negatives, &Settings { guidance_rescale: 0.7, ..settings(3, 1) });
    let choice = SamplerChoice { name: Some("euler_ancestral".to_owned()), ..SamplerChoice::default() };
    let stochastic =
        Settings { sampler: Some(choice.config(&checkpoint()).unwrap()), noise: NoiseKind::TorchCpu, ..settings(3, 1) };
    assert_independent_of_batch(&pipeline, &mixed(&|_, _| ()), &stochastic);
    let shared = start(9, false);
    let started = mixed(&|number, request| {
        request.strength = 0.7;
        request.start = Some(if number % 2 == 0 { Arc::clone(&shared) } else { start(number as u32, false) });
    });
    assert_independent_of_batch(&pipeline, &started, &settings(4, 1));
    let masked = mixed(&|number, request| {
        request.start = Some(start(number as u32, true));
    });
    assert_independent_of_batch(&pipeline, &masked, &settings(4, 1));
}

#[test]
fn files_are_read_once() {
    let folder = tempfile::tempdir().unwrap();
    RandomCheckpoint::new(RandomFamily::Tiny).write(folder.path()).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let pipeline = Pipeline::load(&checkpoint, &LoadOptions::default()).unwrap();
    drop(checkpoint);
    // Neither a mapping nor a descriptor is left through which anything could be read, and soon no file.
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(name), "a file of the checkpoint is still mapped");
    let open = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| entry.ok()?.path().read_link().ok());
    assert_eq!(open.filter(|path| path.to_string_lossy().contains(name)).count(), 0, "a file is still open");
    folder.close().unwrap();
    let requests = [request("a cat", 1, 5.0), request("a dog", 2, 5.0)];
    let first = draw(&pipeline, &requests, &settings(2, 2));
    assert_eq!(draw(&pipeline, &requests, &settings(2, 2)), first);
}

/// Counts the files of some folders that this process and others open. The system joins an event with an equal one right before
/// it, so that closing is listened to as well.
#[cfg(target_os = "linux")]
struct Opened {
    queue: std::os::fd::OwnedFd,
    folders: BTreeMap<i32, String>,
}

#[cfg(target_os = "linux")]
impl Opened {
    fn watch<'a>(root: &Path, folders: impl IntoIterator<Item = &'a str>) -> Self {
        let queue = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
        let flags = inotify::WatchFlags::OPEN | inotify::WatchFlags::CLOSE;
        let watch = |folder: &str| (inotify::add_watch(&queue, root.join(folder), flags).unwrap(), folder.to_owned());
        let folders = folders.into_iter().map(watch).collect();
        Self { queue, folders }
    }

    /// Files that were opened since the last call, and how often.
    fn count(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.queue, &mut buffer);
        while let Ok(event) = events.next() {
            let flags = event.events();
            assert!(!flags.contains(inotify::ReadFlags::QUEUE_OVERFLOW));
            // The folders themselves are opened for lists of their files.
            if flags.contains(inotify::ReadFlags::OPEN) && !flags.contains(inotify::ReadFlags::ISDIR) {
                let name = event.file_name().unwrap().to_str().unwrap();
                *counts.entry(Path::new(&self.folders[&event.wd()]).join(name).display().to_string()).or_default() += 1;
            }
        }
        counts
    }
}

#[cfg(target_os = "linux")]
#[test]
fn each_file_is_opened_once() {
    let folder = tempfile::tempdir().unwrap();
    RandomCheckpoint::new(RandomFamily::Tiny).write(folder.path()).unwrap();
    let opened = Opened::watch(folder.path(), [".", "unet", "vae", "text_encoder", "scheduler"]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let pipeline = Pipeline::load(&checkpoint, &LoadOptions::default()).unwrap();
    let once = [
        "./model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    ];
    assert_eq!(opened.count(), once.map(|file| (file.to_owned(), 1)).into());
    for _ in 0..2 {
        draw(&pipeline, &[request("a cat", 1, 5.0)], &settings(2, 1));
        assert_eq!(opened.count(), BTreeMap::new());
    }
}

#[test]
fn text_to_image_needs_no_encoder_of_the_autoencoder() {
    let options = LoadOptions { precision: Precision::F32, start_images: false, ..LoadOptions::default() };
    let text_to_image = Pipeline::load(&checkpoint(), &options).unwrap();
    let whole = load(Precision::F32);
    let cat = request("a cat", 1, 5.0);
    let draws = |pipeline| draw(pipeline, std::slice::from_ref(&cat), &settings(2, 1));
    assert_eq!(draws(&text_to_image), draws(&whole));
    let keys = |pipeline: &Pipeline| -> Vec<String> {
        let autoencoder = pipeline.autoencoder().get().unwrap();
        calotype_models::state::layout(&*autoencoder).into_iter().map(|(name, _)| name).collect()
    };
    let encodes = |name: &String| name.starts_with("encoder.") || name.starts_with("quant_conv.");
    let mut decoding = keys(&whole);
    decoding.retain(|name| !encodes(name));
    assert_eq!(keys(&text_to_image), decoding);
    let started = Request { start: Some(start(1, false)), ..cat };
    let error = text_to_image.generate(&[started], &settings(4, 1), &mut ()).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("`start_images`"), "{error}");
}

#[test]
fn little_memory_changes_no_image_and_reads_again() {
    let requests = [request("a cat", 1, 5.0), request("a dog", 2, 5.0)];
    let options = LoadOptions { precision: Precision::F32, low_memory: true, ..LoadOptions::default() };
    let frugal = Pipeline::load(&checkpoint(), &options).unwrap();
    let kept = draw(&load(Precision::F32), &requests, &settings(2, 1));
    for _ in 0..2 {
        assert_eq!(draw(&frugal, &requests, &settings(2, 1)), kept);
    }
}

#[test]
fn the_stages_alone_draw_what_they_draw_together() {
    let pipeline = load(Precision::F32);
    let requests = [request("a cat", 1, 5.0), request("a dog", 2, 1.0)];
    let together = draw(&pipeline, &requests, &settings(2, 2));
    let prompts = pipeline.encode_prompts(&["a cat", "a dog"], &settings(2, 2).prompts()).unwrap();
    let latents = pipeline.sample(&requests, &prompts, &settings(2, 2), &mut ()).unwrap();
    assert_eq!(latents.dims(), [2, 8, 8, 4]);
    let images = pipeline.decode(latents).unwrap();
    let bits: Vec<u32> = images.to_data().iter::<f32>().map(f32::to_bits).collect();
    assert_eq!(bits, together.concat());
    let error = pipeline.sample(&[request("a horse", 1, 5.0)], &prompts, &settings(2, 1), &mut ()).unwrap_err();
    assert!(error.to_string().contains("`a horse` was not encoded"), "{error}");
}

#[test]
fn requests_that_cannot_share_a_batch_are_drawn_in_order() {
    let pipeline = load(Precision::F32);
    let long = "a cat ".repeat(60);
    let started = |strength| Request { start: Some(start(1, false)), strength, ..request("a cat", 2, 5.0) };
    let requests = [
        request("a cat", 1, 5.0),
        request("a dog", 1, 2.0),
        started(0.5),
        started(0.5),
        started(0.9),
        request(&long, 4, 5.0),
    ];
    let all = Settings { long_prompts: true, ..settings(4, 8) };
    let texts: Vec<&str> = requests.iter().map(|request| request.prompt.as_str()).collect();
    let prompts = pipeline.encode_prompts(&texts, &all.prompts()).unwrap();
    assert_eq!(pipeline.batches(&requests, &prompts, &all).unwrap(), [0..2, 2..4, 4..5, 5..6]);
    assert_eq!(draw(&pipeline, &requests, &all).len(), requests.len());
    let error = pipeline.sample(&requests, &prompts, &all, &mut ()).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("cannot share a batch"), "{error}");
}

#[test]
fn observers_hear_of_cut_prompts_and_end_the_work() {
    let pipeline = load(Precision::F32);
    let requests = [request(&"a cat ".repeat(60), 1, 5.0), request("a dog", 2, 5.0), request("a cow", 3, 5.0)];
    let mut observer = Pixels { most_images: 2, ..Pixels::endless() };
    let error = pipeline.generate(&requests, &settings(2, 1), &mut observer).unwrap_err();
    assert!(matches!(error, PipelineError::Stopped { done: 2, all: 3 }), "{error}");
    assert_eq!((observer.images.len(), observer.cut.len(), observer.cut[0].tokens), (2, 1, 45));
    let mut observer = Pixels { most_steps: 1, ..Pixels::endless() };
    let error = pipeline.generate(&requests, &settings(2, 1), &mut observer).unwrap_err();
    assert!(error.is_stopped() && observer.images.is_empty(), "{error}");
}

#[test]
fn another_unet_takes_the_place_of_the_checkpoints() {
    let pipeline = load(Precision::F32);
    let requests = [request("a cat", 1, 5.0)];
    let before = draw(&pipeline, &requests, &settings(2, 1));
    let config: UNetConfig = pipeline.unet().config().clone();
    let unet = config.init(&mut Init::new(1, &Device::flex())).unwrap();
    let other = pipeline.with_unet(config, unet);
    assert_ne!(draw(&other, &requests, &settings(2, 1)), before);
    assert_eq!(draw(&pipeline, &requests, &settings(2, 1)), before);
}

#[test]
fn what_cannot_be_drawn_is_said_before_any_work() {
    let pipeline = load(Precision::F32);
    let refused = |request: &Request, settings: &Settings, parts: &[&str]| {
        let error = pipeline.generate(std::slice::from_ref(request), settings, &mut ()).unwrap_err();
        assert!(error.is_usage(), "{error}");
        parts.iter().for_each(|part| assert!(error.to_string().contains(part), "`{part}` is not in: {error}"));
    };
    let cat = request("a cat", 1, 5.0);
    refused(&cat, &Settings { width: Some(65), ..settings(2, 1) }, &["width", "65 pixels", "multiples of 8"]);
    refused(&cat, &settings(0, 1), &["0"]);
    let noise = Some(Tensor::zeros([1, 4, 8, 4], &Device::flex()));
    refused(&Request { noise, ..cat.clone() }, &settings(2, 1), &["4 rows and 8 columns", "8 rows"]);
    let start = Some(start(1, false));
    refused(&Request { start, strength: 0.1, ..cat }, &settings(2, 1), &["strength 0.1"]);

    let folder = tempfile::tempdir().unwrap();
    RandomCheckpoint { in_channels: 9, ..RandomCheckpoint::new(RandomFamily::Tiny) }.write(folder.path()).unwrap();
    let options = LoadOptions { precision: Precision::F32, ..LoadOptions::default() };
    let inpainting = Pipeline::load(&Checkpoint::open(folder.path()).unwrap(), &options).unwrap();
    let plain = [request("a cat", 1, 5.0)];
    let error = inpainting.generate(&plain, &settings(2, 1), &mut ()).unwrap_err().to_string();
    assert!(error.contains("9 input channels") && error.contains("--mask"), "{error}");
    let of = |seed: u32| Request { start: Some(self::start(seed, true)), strength: 1.0, ..request("a cat", 1, 5.0) };
    assert_independent_of_batch(&inpainting, &[of(1), of(2)], &settings(2, 1));
}

#[test]
fn an_image_holds_the_settings_that_draw_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cat.png");
    let mut record = GenerationRecord::new(FOLDER.path(), Precision::F32);
    record.request = RecordedRequest { number: 4, prompt: "a cat — äöü".to_owned(), negative: None };
    (record.settings.steps, record.settings.seed, record.settings.guidance) = (2, 11, Some(2.5));
    record.settings.caching = Some(Caching { interval: 2, branch: 1 });
    record.settings.sampler = Some(SamplerChoice::default().config(&checkpoint()).unwrap());
    let draw = |record: &GenerationRecord, path: &Path| {
        struct Write<'a>(&'a GenerationRecord, &'a Path);
        impl Observer for Write<'_> {
            fn image(&mut self, image: &DrawnImage<'_>) {
                write_png(self.1, image.pixels, &self.0.texts(image.pixels)).unwrap();
            }
        }
        let request = record.request(&record.read_inputs(&Device::flex()).unwrap()).unwrap();
        load(Precision::F32).generate(&[request], &record.settings(), &mut Write(record, path)).unwrap();
        std::fs::read(path).unwrap()
    };
    let first = draw(&record, &path);
    let Recorded::Own(read) = Recorded::read(&path).unwrap() else { panic!("it is an image of ours") };
    assert_eq!((&read.request, &read.settings), (&record.request, &record.settings));
    assert_eq!(draw(&read, &folder.path().join("again.png")), first);

    std::fs::write(&path, RgbImage::filled(8, 8, [1, 2, 3]).unwrap().encode_png(Default::default()).unwrap()).unwrap();
    let error = Recorded::read(&path).unwrap_err().to_string();
    assert!(error.contains("cat.png") && error.contains("holds no settings"), "{error}");
    let empty = [calotype_data::image::text::PngText { keyword: "parameters".into(), text: " \n".into() }];
    write_png(&path, &Tensor::zeros([8, 8, 3], &Device::flex()), &empty).unwrap();
    assert!(Recorded::read(&path).unwrap_err().to_string().contains("holds no settings"));
    let preview = folder.path().join("preview.png");
    write_preview(&preview, &Tensor::zeros([8, 8, 3], &Device::flex())).unwrap();
    assert!(is_preview(&preview) && !is_preview(&path) && !is_preview(&folder.path().join("none.png")));
    record.mask = Some(path);
    let error = record.read_inputs(&Device::flex()).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("--image"), "{error}");
}

/// What web interfaces show: the values that were used, in their shortest form.
#[test]
fn an_image_says_what_was_used() {
    let mut record = GenerationRecord::new(FOLDER.path(), Precision::F32);
    record.request = RecordedRequest { number: 4, prompt: "a cat".to_owned(), negative: Some("blurry".to_owned()) };
    (record.settings.seed, record.settings.guidance, record.settings.clip_skip) = (11, Some(7.3), 1);
    record.settings.noise = NoiseKind::TorchCpu;
    let choice = SamplerChoice { name: Some("DPM++ 2M Karras".to_owned()), ..SamplerChoice::default() };
    record.settings.sampler = Some(choice.config(&checkpoint()).unwrap());
    let texts = record.texts(&Tensor::zeros([64, 72, 3], &Device::flex()));
    let parameters = &texts.iter().find(|text| text.keyword == "parameters").unwrap().text;
    let model = FOLDER.path().file_stem().unwrap().to_str().unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        *parameters,
        format!(
            "a cat\nNegative prompt: blurry\nSteps: 50, Sampler: DPM++ 2M, CFG scale: 7.3, Seed: 15, Size: 72x64, \
             Schedule type: Karras, Model: {model}, Clip skip: 2, RNG: CPU, Version: calotype {version}"
        )
    );
    let foreign = calotype_pipeline::foreign::a1111::read(parameters);
    assert_eq!((foreign.settings.guidance, foreign.settings.seed, foreign.settings.clip_skip), (Some(7.3), 15, 1));
    assert_eq!((foreign.sampler.as_deref(), foreign.rest.as_slice()), (Some("DPM++ 2M Karras"), &[][..]));
}

#[test]
fn images_never_take_the_place_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let pixels = Tensor::<3>::zeros([8, 8, 3], &Device::flex());
    let write = || write_next_png(folder.path(), &pixels, &[]).unwrap().file_name().unwrap().to_owned();
    assert_eq!(write(), "00000.png");
    std::fs::write(folder.path().join("00007.png"), "somebody's").unwrap();
    std::fs::write(folder.path().join("notes.txt"), "").unwrap();
    assert_eq!(write(), "00008.png");
    assert_eq!(std::fs::read(folder.path().join("00007.png")).unwrap(), b"somebody's");
    // Two processes at once: each image has a name of its own.
    let names: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..8).map(|_| scope.spawn(write)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), 8, "{names:?}");
}

/// An image with an orientation and a transparent mask: upright, and drawn anew only where the mask is white and opaque.
#[test]
fn images_to_begin_with_are_upright_and_opaque() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/tests/golden/images");
    let turned = images.join("orientation_6.jpg");
    let upright = RgbImage::decode("x", &std::fs::read(&turned).unwrap()).unwrap();
    let device = Device::flex();
    let options = DecodeOptions::default();
    let size = [Some(upright.height()), Some(upright.width())];
    let (start, notes) = StartImage::read(&turned, None, &options, size, &device).unwrap();
    let pixels: Vec<f32> = start.pixels.into_data().iter::<f32>().collect();
    assert_eq!(pixels, upright.to_f32_hwc(-1.0, 1.0));
    assert!(notes[0].contains("orientation_6.jpg: 1 image turned upright"), "{notes:?}");

    let folder = tempfile::tempdir().unwrap();
    let mask = folder.path().join("mask.png");
    // White everywhere, opaque in the first of two columns: what a painting program saves of a layer.
    let pixels = [[255u8, 255, 255, 255], [255, 255, 255, 0]].repeat(8).concat();
    let layer = RgbaImage::new(2, 8, pixels).unwrap();
    std::fs::write(&mask, layer.encode_png(Default::default()).unwrap()).unwrap();
    let (start, notes) = StartImage::read(&mask, Some(&mask), &options, [Some(8), Some(2)], &device).unwrap();
    let drawn: Vec<f32> = start.mask.unwrap().into_data().iter::<f32>().collect();
    assert_eq!(drawn, [1.0, 0.0].repeat(8));
    assert!(notes[0].contains("laid on white") && notes[1].contains("laid on black"), "{notes:?}");
}

static SDXL: LazyLock<TempDir> = LazyLock::new(|| written(RandomFamily::TinySdxl));
static REFINER: LazyLock<TempDir> = LazyLock::new(|| written(RandomFamily::TinyRefiner));

fn written(family: RandomFamily) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    RandomCheckpoint::new(family).write(folder.path()).unwrap();
    folder
}

fn open(folder: &TempDir, low_memory: bool) -> Pipeline {
    let options = LoadOptions { precision: Precision::F32, low_memory, ..LoadOptions::default() };
    Pipeline::load(&Checkpoint::open(folder.path()).unwrap(), &options).unwrap()
}

fn refined(base: &Pipeline, refiner: &Pipeline, start: f64) -> Pipeline {
    base.clone().with_refiner(Refiner { pipeline: refiner.clone(), start, sampler: None })
}

#[test]
fn a_network_that_takes_over_from_itself_changes_nothing() {
    let base = open(&SDXL, false);
    let requests = [request("a cat", 1, 5.0), request("a dog", 2, 1.0), request("a cow", 3, 2.0)];
    for (steps, start) in [(5, 0.8), (6, 0.5), (3, 0.9)] {
        let whole = draw(&base, &requests, &settings(steps, 2));
        assert_eq!(
            draw(&refined(&base, &base, start), &requests, &settings(steps, 2)),
            whole,
            "{steps} steps, {start}"
        );
    }
}

#[test]
fn a_refiner_draws_alone_and_behind_a_base_model() {
    let refiner = open(&REFINER, false);
    let begun = [Request { start: Some(start(1, false)), strength: 0.5, ..request("a cat", 2, 5.0) }];
    let usual = draw(&refiner, &begun, &settings(4, 1));
    let ugly = Settings { aesthetic_scores: [1.0, 2.5], ..settings(4, 1) };
    assert_ne!(draw(&refiner, &begun, &ugly), usual);
    let base = open(&SDXL, false);
    // The first network has a part in it only if enough is drawn anew.
    let early = Request { strength: 0.9, ..begun[0].clone() };
    let requests = [request("a cat", 1, 5.0), request("a dog", 2, 1.0), early];
    let both = draw(&refined(&base, &refiner, 0.6), &requests, &settings(5, 2));
    assert_ne!(both, draw(&base, &requests, &settings(5, 2)));
    let frugal = refined(&open(&SDXL, true), &open(&REFINER, true), 0.6);
    assert_eq!(draw(&frugal, &requests, &settings(5, 2)), both);
    // The refiner's scores are not the base's.
    assert_eq!(draw(&base, &requests, &ugly), draw(&base, &requests, &settings(4, 1)));
    let mut observer = Pixels { most_images: 2, ..Pixels::endless() };
    let error = refined(&base, &refiner, 0.6).generate(&requests, &settings(5, 1), &mut observer).unwrap_err();
    assert!(matches!(error, PipelineError::Stopped { done: 2, all: 3 }), "{error}");
}

#[test]
fn what_cannot_be_refined_is_said_before_any_work() {
    let base = open(&SDXL, false);
    let refiner = open(&REFINER, false);
    let cat = request("a cat", 1, 5.0);
    let masked = Request { start: Some(start(1, true)), strength: 1.0, ..cat.clone() };
    let late = Request { start: Some(start(1, false)), strength: 0.1, ..cat.clone() };
    for (request, share, part) in [
        (&cat, 1.0, "handover at 1"),
        (&cat, 0.01, "first network"),
        (&cat, 0.9999, "second network"),
        (&masked, 0.5, "--mask"),
        (&late, 0.5, "first network"),
    ] {
        let pipeline = refined(&base, &refiner, share);
        let error = pipeline.generate(std::slice::from_ref(request), &settings(10, 1), &mut ()).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(part), "{share}: {error}");
    }
}

/// Latents of another autoencoder have the same form: nothing but the configurations tells them apart.
#[test]
fn a_refiner_of_other_latents_is_refused_before_any_work() {
    let (base, refiner) = (open(&SDXL, false), open(&REFINER, false));
    let scaled = |fields: serde_json::Value| {
        let folder = tempfile::tempdir().unwrap();
        RandomCheckpoint::new(RandomFamily::TinyRefiner).write(folder.path()).unwrap();
        let path = folder.path().join("vae/config.json");
        let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        std::fs::write(path, config.to_string()).unwrap();
        open(&folder, false)
    };
    let plain = tempfile::tempdir().unwrap();
    RandomCheckpoint::new(RandomFamily::Tiny).write(plain.path()).unwrap();
    let cases = [
        (open(&plain, false), "no model of Stable Diffusion XL"),
        (scaled(serde_json::json!({ "scaling_factor": 0.13025 })), "scaled by 0.13025, and those of"),
        (
            scaled(serde_json::json!({ "latents_mean": [0, 0.5, 0, 0], "latents_std": [1, 1, 1, 1] })),
            "other means and deviations",
        ),
    ];
    for (second, told) in cases {
        let error = refined(&base, &second, 0.6).generate(&[request("a cat", 1, 5.0)], &settings(5, 1), &mut ());
        let error = error.unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(told), "{error}");
    }
    draw(&refined(&base, &refiner, 0.6), &[request("a cat", 1, 5.0)], &settings(3, 1));
}

/// Deep features belong to one batch's run, and an interval of 1 keeps none.
#[test]
fn cached_blocks_do_not_depend_on_the_batch() {
    let pipeline = load(Precision::F32);
    let requests = [("a cat", 3, 7.5), ("two boats on a lake", 4, 1.0), ("a dog", 5, 2.0)];
    let requests = requests.map(|(prompt, seed, guidance)| request(prompt, seed, guidance));
    let cached =
        |interval: usize, branch: usize| Settings { caching: Some(Caching { interval, branch }), ..settings(5, 1) };
    assert_independent_of_batch(&pipeline, &requests, &cached(2, 0));
    let plain = draw(&pipeline, &requests, &settings(5, 1));
    assert_eq!(draw(&pipeline, &requests, &cached(1, 3)), plain);
    let both = [draw(&pipeline, &requests, &cached(2, 0)), draw(&pipeline, &requests, &cached(2, 1))];
    assert!(both[0] != plain && both[1] != plain && both[0] != both[1]);
    for (caching, said) in [(cached(2, 6), "skip connections 0 to 5"), (cached(0, 0), "--cache-interval 0")] {
        let mut pixels = Pixels::endless();
        let error = pipeline.generate(&requests, &caching, &mut pixels).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains(said), "{error}");
        assert_eq!(pixels.steps, 0);
    }
    // A start image leaves out the first steps; the first that is drawn is a whole one.
    let begun = requests.clone().map(|request| Request { start: Some(start(1, false)), strength: 0.6, ..request });
    assert_independent_of_batch(&pipeline, &begun, &cached(2, 0));
}

/// The network is told its scale: negative prompts change nothing, and each scale draws another image.
#[test]
fn a_latent_consistency_model_is_told_its_guidance() {
    let folder = written(RandomFamily::TinyLcm);
    let pipeline = open(&folder, false);
    assert_eq!(pipeline.unet().config().guidance_features, Some(32));
    let settings = settings(2, 1);
    let requests = [request("a cat", 1, 8.5), request("a cat", 1, 1.0), request("a dog", 2, 4.0)];
    assert_independent_of_batch(&pipeline, &requests, &settings);
    let negative = Request { negative: Some("blurry".to_owned()), ..request("a cat", 1, 8.5) };
    assert_eq!(draw(&pipeline, &[negative], &settings), draw(&pipeline, &requests[..1], &settings));
}

/// A checkpoint with another scheduler's file.
fn with_scheduler(config: serde_json::Value, unet: Option<serde_json::Value>) -> (TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    RandomCheckpoint::new(RandomFamily::Tiny).write(folder.path()).unwrap();
    std::fs::write(folder.path().join("scheduler/scheduler_config.json"), config.to_string()).unwrap();
    if let Some(fields) = unet {
        let path = folder.path().join("unet/config.json");
        let mut config: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        std::fs::write(path, config.to_string()).unwrap();
    }
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    (folder, checkpoint)
}

/// What diffusers 0.42's `StableDiffusionPipeline` corrects when it is made, and what it leaves as it is.
#[test]
fn old_settings_are_corrected_as_diffusers_corrects_them() {
    use serde_json::json;
    let shared = json!({
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
        "trained_betas": null,
    });
    let of = |more: serde_json::Value| {
        let mut config = shared.clone();
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let new =
        json!({ "_class_name": "DDIMScheduler", "steps_offset": 1, "clip_sample": false, "set_alpha_to_one": false });
    let expected = |config: serde_json::Value, name: Option<&str>| {
        let (_folder, checkpoint) = with_scheduler(config, None);
        let choice = SamplerChoice { name: name.map(str::to_owned), ..SamplerChoice::default() };
        choice.resolve(&checkpoint).unwrap()
    };
    let sound = expected(of(new.clone()), None);
    assert!(sound.notes.is_empty(), "{:?}", sound.notes);
    for (change, notes) in [
        (json!({ "steps_offset": 0 }), 1),
        (json!({ "clip_sample": true }), 1),
        // Null is no switch that is on, so that nothing is to be corrected there.
        (json!({ "clip_sample": null, "steps_offset": null }), 1),
    ] {
        let mut old = of(new.clone());
        old.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let found = expected(old.clone(), None);
        assert_eq!(found.config, sound.config, "{change}");
        assert_eq!(found.notes.len(), notes, "{change}: {:?}", found.notes);
        assert!(found.notes.iter().all(|note| note.contains("StableDiffusionPipeline")), "{:?}", found.notes);
        // Another sampler on the same file is what the pipeline would correct, too.
        let mut other = expected(old, Some("ddpm")).config;
        assert_eq!(other.kind.clip_mut().unwrap(), &mut None, "{change}");
        assert_eq!(other.steps_offset, 1);
    }
    // The Runge-Kutta steps are corrected by the inpainting pipeline alone.
    let pndm = of(json!({ "_class_name": "PNDMScheduler", "steps_offset": 1, "tensor_format": "pt" }));
    let found = expected(pndm, None);
    assert!(found.notes.len() == 1 && found.notes[0].contains("tensor_format"), "{:?}", found.notes);
    // Sizes of files of before diffusers 0.9.
    for (version, side, size) in [("0.6.0", 32, 64), ("0.9.0", 32, 32), ("0.6.0", 96, 96)] {
        let unet = json!({ "_diffusers_version": version, "sample_size": side });
        let (_folder, checkpoint) = with_scheduler(of(new.clone()), Some(unet));
        let defaults = calotype_pipeline::Defaults::of(&checkpoint, 8);
        assert_eq!((defaults.latent_size, defaults.notes.len()), ([size; 2], usize::from(size != side)), "{version}");
    }
    let (_folder, checkpoint) = with_scheduler(of(new), Some(json!({ "sample_size": [48, 64] })));
    assert_eq!(calotype_pipeline::Defaults::of(&checkpoint, 8).latent_size, [48, 64]);
}

#[test]
fn a_pipeline_can_be_shared_between_threads() {
    fn shared<T: Send + Sync>(_: &T) {}
    shared(&load(Precision::F32));
}
