//! The counted work of a network is the work that its operations do.

use calotype_bench::{
    ClipShape, Family, Mode, NetworkPrecision, UNetBench, VisionBench, VisionNetwork, VitShape, run_unet, run_vision,
};
use calotype_ops::Precision;
use calotype_ops::profile::{self, Pass, ProfileEntry};

/// All things at once, as the profile belongs to the process.
#[test]
fn profiled_operations_add_up_to_the_counted_work() {
    let bench = UNetBench {
        family: Family::Tiny,
        resolution: 64,
        batch: 2,
        mode: Mode::Train,
        precision: NetworkPrecision::F32,
        iterations: 1,
        recompute_blocks: false,
        optimizer_in_backward: false,
        profile: false,
    };
    let profiled = |bench: &UNetBench| {
        profile::start();
        run_unet(bench).unwrap();
        profile::stop()
    };
    let flops = |entries: &[ProfileEntry], pass| -> f64 {
        entries.iter().filter(|entry| entry.pass == pass).map(|entry| entry.flops).sum()
    };
    let entries = profiled(&bench);
    let counted = bench.family.config().forward_flops(bench.batch, [8, 8], 77) as f64;
    assert_eq!(flops(&entries, Pass::Forward), counted);
    // Backward does two products for each one of forward, but attention five for two, and the layers on the latent and the
    // text states, which need no gradients, one.
    let ratio = flops(&entries, Pass::Backward) / counted;
    assert!((1.7..2.5).contains(&ratio), "{ratio}");
    assert!(entries.iter().any(|entry| entry.pass == Pass::Optimizer && entry.bytes > 0.0));
    assert_eq!(flops(&entries, Pass::Recompute), 0.0);

    let thrifty = UNetBench { recompute_blocks: true, optimizer_in_backward: true, ..bench };
    let entries_of_thrifty = profiled(&thrifty);
    for pass in [Pass::Forward, Pass::Backward] {
        assert_eq!(flops(&entries_of_thrifty, pass), flops(&entries, pass));
    }
    let again = flops(&entries_of_thrifty, Pass::Recompute) / counted;
    assert!((0.8..1.0).contains(&again), "all blocks, not the layers around them: {again}");
    assert!(profile::stop().is_empty(), "nothing is gathered while profiling is off");

    let int8 = UNetBench { mode: Mode::Forward, precision: NetworkPrecision::Int8, ..bench };
    assert_eq!(flops(&profiled(&int8), Pass::Forward), counted);
    let (report, _) = run_unet(&int8).unwrap();
    assert!(report.json().contains("\"precision\":\"int8\""), "{}", report.json());
    let error = run_unet(&UNetBench { mode: Mode::Train, ..int8 }).unwrap_err().to_string();
    assert!(error.starts_with("--precision: int8 is for drawing"), "{error}");

    for network in [VisionNetwork::Vit(VitShape::Tiny), VisionNetwork::Clip(ClipShape::Tiny)] {
        let (batch, precision, iterations) = (2, Precision::F32, 1);
        let bench = VisionBench { network, batch, mode: Mode::Forward, precision, iterations, profile: false };
        profile::start();
        let (report, _) = run_vision(&bench).unwrap();
        let done = flops(&profile::stop(), Pass::Forward);
        let counted = 1e12 * report.tflops * report.seconds;
        assert!((done / counted - 1.0).abs() < 1e-9, "{network:?}: {done} of {counted}");
        let (trained, _) = run_vision(&VisionBench { mode: Mode::Train, ..bench }).unwrap();
        assert_eq!((trained.images_per_second * trained.seconds).round(), 2.0);
    }
    let alone = VisionNetwork::Clip(ClipShape::Tiny);
    let (precision, iterations) = (Precision::F32, 1);
    let one = VisionBench { network: alone, batch: 1, mode: Mode::Train, precision, iterations, profile: false };
    assert!(run_vision(&one).unwrap_err().to_string().starts_with("--batch: the contrastive loss"), "a single pair");
}
