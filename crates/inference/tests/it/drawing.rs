//! Threads that draw with a tiny checkpoint: the pictures are those of the pipeline, whatever the batches, and a failing sample ends the run.

use burn::tensor::{Device, Tensor, TensorData};
use calotype_checkpoints::Checkpoint;
use calotype_core::StopFlag;
use calotype_inference::{Answers, Artist, HandSettings, Hands, Job, Queue, Recipe, Samples, fixed_latent};
use calotype_loadgen::Responder;
use calotype_pipeline::random_checkpoint::{RandomCheckpoint, RandomFamily};
use calotype_pipeline::{LoadOptions, Pipeline, Request, SamplerChoice, Settings};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn recipe(more: &str) -> Recipe {
    toml::from_str(&format!(
        "kind = 'mlperf_inference'\nvariant = 'custom'\nwidth = 16\nheight = 16\nsteps = 2\nguidance = 8.0\nnegative = 'blurry'\n\
         precision = 'f32'\n[sampler]\nname = 'euler'\n[captions]\nmade_up = true\ncount = 5\n[serve]\n{more}\n"
    ))
    .unwrap()
}

fn drawn(model: &Path, recipe: &Recipe) -> BTreeMap<u64, Vec<u8>> {
    let artist = Artist::load(model, recipe, &Device::flex()).unwrap();
    artist.warm_up(1, Some(1), &|| true).unwrap();
    let samples = Arc::new(Samples::read(recipe).unwrap());
    let taken: Arc<Mutex<BTreeMap<u64, Vec<u8>>>> = Arc::default();
    let kept = Arc::clone(&taken);
    let responder = Responder::to(move |id, data| {
        assert!(kept.lock().unwrap().insert(id, data.to_vec()).is_none(), "one answer each");
    });
    let queue = Arc::new(Queue::new(&StopFlag::new_unhooked()));
    let settings = HandSettings { workers: recipe.serve.workers, wait: Duration::ZERO };
    let hands = Hands::start(settings, &artist, &samples, &queue).unwrap();
    responder.issued(0..5);
    let answers: Arc<dyn Answers> = Arc::<Responder>::clone(&responder);
    queue.put((0..5).map(|id| Job { id, sample: id as usize }), &answers);
    queue.flush();
    let begun = Instant::now();
    while responder.outstanding() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(300), "it hangs");
        std::thread::sleep(Duration::from_millis(5));
    }
    queue.end();
    hands.join();
    assert_eq!(queue.failure(), None);
    responder.close();
    taken.lock().unwrap().clone()
}

#[test]
fn what_a_checkpoint_cannot_draw_is_found_out_before_its_weights_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    RandomCheckpoint::new(RandomFamily::TinySdxl).write(&at("sdxl")).unwrap();
    RandomCheckpoint::new(RandomFamily::Tiny).write(&at("sd")).unwrap();
    let usual = recipe("");
    let told = |name: &str, recipe: &Recipe| match Artist::check(&at(name), recipe, &Device::flex()) {
        Ok(()) => String::new(),
        Err(error) => {
            assert!(error.is_usage(), "{error}");
            error.to_string()
        }
    };
    assert_eq!(told("sdxl", &usual), "");
    assert!(told("none", &usual).contains("none"));
    assert!(told("sd", &usual).contains("sd: is no checkpoint of Stable Diffusion XL"));
    let odd = Recipe { width: 20, ..usual.clone() };
    assert!(told("sdxl", &odd).contains("a width of 20 pixels: sides must be multiples of 8"));
    let many = Recipe { steps: 2000, ..usual };
    assert!(told("sdxl", &many).contains("2000"), "{}", told("sdxl", &many));
}

#[test]
fn pictures_are_those_of_the_pipeline_in_any_batch() {
    let folder = tempfile::tempdir().unwrap();
    RandomCheckpoint::new(RandomFamily::TinySdxl).write(folder.path()).unwrap();
    let one = recipe("");
    let found = drawn(folder.path(), &one);
    let three = drawn(folder.path(), &recipe("batch_size = 3\ndecode_batch = 2\nworkers = 2"));
    assert_eq!(found, three);

    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let options = LoadOptions { precision: one.precision.resolve(&Device::flex()), ..LoadOptions::default() };
    let pipeline = Pipeline::load(&checkpoint, &options).unwrap();
    let sampler = SamplerChoice { name: Some("euler".to_owned()), ..SamplerChoice::default() };
    let settings = Settings {
        width: Some(16),
        height: Some(16),
        steps: 2,
        sampler: Some(sampler.config(&checkpoint).unwrap()),
        ..Settings::default()
    };
    let latent = fixed_latent(0, [4, 2, 2]);
    let latent = Tensor::<4>::from_data(TensorData::new(latent, [1, 4, 2, 2]), &Device::flex()).permute([0, 2, 3, 1]);
    let samples = Samples::read(&one).unwrap();
    let request = |id: &u64| Request {
        negative: Some("blurry".to_owned()),
        guidance: Some(8.0),
        noise: Some(latent.clone()),
        ..Request::new(samples.caption(*id as usize).unwrap())
    };
    let requests: Vec<Request> = found.keys().map(request).collect();
    let images = pipeline.images(&requests, &settings).unwrap();
    for (id, image) in found.keys().zip(images) {
        assert_eq!(found[id], image.data(), "{id}");
    }
    assert!(found.values().all(|pixels| pixels.len() == 16 * 16 * 3));
}

#[test]
fn what_does_not_fit_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    RandomCheckpoint::new(RandomFamily::TinySdxl).write(folder.path()).unwrap();
    let large = Recipe { width: 1 << 16, height: 1 << 16, ..recipe("batch_size = 64") };
    let error = Artist::load(folder.path(), &large, &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("65536x65536 takes about") && error.contains("lower serve.batch_size"), "{error}");
    let error = Artist::load(Path::new("/nowhere"), &recipe(""), &Device::flex()).unwrap_err();
    assert!(error.to_string().contains("/nowhere"), "{error}");
    let odd = Recipe { width: 12, ..recipe("") };
    assert!(Artist::load(folder.path(), &odd, &Device::flex()).unwrap_err().to_string().contains("12 pixels"));
}
