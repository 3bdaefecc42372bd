//! The counted work of a UNet is the work that its operations do.

use calotype_bench::{Family, Mode, Precision, UNetBench, run_unet};
use calotype_ops::profile::{self, Pass, ProfileEntry};

/// Both things at once, as the profile belongs to the process.
#[test]
fn profiled_operations_add_up_to_the_counted_work() {
    let bench = UNetBench {
        family: Family::Tiny,
        resolution: 64,
        batch: 2,
        mode: Mode::Train,
        precision: Precision::F32,
        iterations: 1,
        profile: false,
    };
    profile::start();
    run_unet(&bench).unwrap();
    let entries = profile::stop();
    let flops = |pass| -> f64 {
        let of_pass = entries.iter().filter(|entry: &&ProfileEntry| entry.pass == pass && entry.flops > 0.0);
        of_pass.map(|entry| entry.flops).sum()
    };
    let counted = bench.family.config().forward_flops(bench.batch, [8, 8], 77) as f64;
    assert_eq!(flops(Pass::Forward), counted);
    // Backward does two products for each one of forward, but attention five for two, and the layers on the latent and the
    // text states, which need no gradients, one.
    let ratio = flops(Pass::Backward) / counted;
    assert!((1.7..2.5).contains(&ratio), "{ratio}");
    assert!(entries.iter().any(|entry| entry.pass == Pass::Optimizer && entry.bytes > 0.0));
    assert!(profile::stop().is_empty(), "nothing is gathered while profiling is off");
}
