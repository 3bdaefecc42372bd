//! Every operation, forward and every gradient, against the other body.

use crate::common::{Body, Placement, Report, Setting, cases, compare, dtypes, evaluate, oracle, subject};
use calotype_ops::{force_portable, uses_kernels};

#[test]
fn outputs_and_gradients() {
    let mut report = Report::default();
    for dtype in dtypes() {
        for case in cases() {
            let data = case.data(dtype);
            let placements = [Placement::Dense, Placement::Summed, Placement::Permuted, Placement::Offset];
            // Burn cannot permute or narrow empty tensors on Flex.
            for &placement in &placements[..if case.is_empty() { 2 } else { 4 }] {
                report.check(&format!("{} {dtype:?} {placement:?}", case.name), || {
                    let outcome =
                        |body| evaluate(&case, &data, &Setting { placement, ..Setting::new(&case, body, dtype) });
                    compare(&case, &outcome(subject()), &outcome(oracle()))
                });
            }
        }
    }
    report.finish();
}

/// The other tests would be void if both sides took the same body.
#[test]
fn bodies_differ() {
    let kernels =
        |body: Body| body.run(|| [body.device(), body.device().autodiff()].map(|device| uses_kernels(&device)));
    assert_eq!(kernels(Body::Kernels), [true; 2]);
    assert_eq!(kernels(Body::Portable), [false; 2]);
    if subject() == Body::Wgpu {
        assert_eq!(kernels(Body::Wgpu), [false; 2]);
    }
}

/// A panic in a test must not leave the thread on the portable body, where later comparisons would be void.
#[test]
fn force_portable_ends_with_a_panic() {
    let device = Body::Kernels.device();
    let outcome = std::panic::catch_unwind(|| force_portable(|| std::panic::resume_unwind(Box::new(()))));
    assert!(outcome.is_err());
    assert!(uses_kernels(&device));
}
