//! What rounds fix.

use calotype_inference::{Round, Variant};

#[test]
fn variants_have_their_samples() {
    assert_eq!(
        [Variant::Full, Variant::Scc24Base, Variant::Scc24Main].map(Variant::samples),
        [Some(5000), Some(50), Some(500)]
    );
    assert_eq!("scc24_base".parse(), Ok(Variant::Scc24Base));
    assert_eq!(Round::default().seeds().library, 2_085_463_073_848_966_840);
}
