//! The counted work of a UNet is the work that its operations do.

use calotype_bench::{Family, Mode, UNetBench, run_unet};
use calotype_ops::Precision;
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
}
