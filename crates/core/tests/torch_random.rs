//! The numbers of PyTorch's CPU generator against PyTorch's own (`make_golden.py`).

use calotype_core::{TorchCpuGenerator, TorchFloat};
use half::{bf16, f16};

const GOLDEN: &str = include_str!("golden/torch_random.txt");

/// FNV-1a over the little-endian bytes.
fn fnv(words: &[u64], bytes: usize) -> u64 {
    let each = words.iter().flat_map(|word| word.to_le_bytes().into_iter().take(bytes));
    each.fold(0xcbf2_9ce4_8422_2325, |value, byte| (value ^ byte as u64).wrapping_mul(0x0100_0000_01b3))
}

/// Draws what a line of the golden file lists. `slack` is how many units in the last place normal numbers may differ.
fn check<T: TorchFloat + Default>(line: &str, slack: u64, bits: impl Fn(T) -> u64) {
    let mut fields = line.split(' ').skip(1);
    let mut generator = TorchCpuGenerator::new(fields.next().unwrap().parse().unwrap());
    for call in fields {
        let (head, numbers) = call.split_once(':').unwrap();
        let (name, hash) = head.split_once('=').unwrap();
        let mut values = vec![T::default(); name[1..].parse().unwrap()];
        match &name[..1] {
            "n" => generator.fill_normal(&mut values),
            _ => generator.fill_uniform(&mut values),
        }
        let words: Vec<u64> = values.into_iter().map(&bits).collect();
        let expected: Vec<u64> = numbers.split(',').map(|word| u64::from_str_radix(word, 16).unwrap()).collect();
        let shown = if words.len() <= 33 { words.clone() } else { [&words[..8], &words[words.len() - 16..]].concat() };
        assert_eq!(shown.len(), expected.len(), "{line:.40}: {name}");
        for (i, (got, want)) in shown.iter().zip(&expected).enumerate() {
            assert!(got.abs_diff(*want) <= slack, "{line:.20}: {name}, number {i}: {got:x} instead of {want:x}");
        }
        if slack == 0 {
            assert_eq!(format!("{:016x}", fnv(&words, size_of::<T>())), hash, "{line:.20}: {name}");
        }
    }
}

#[test]
fn draws_what_torch_draws() {
    let mut lines = 0;
    for line in GOLDEN.lines().skip(1) {
        match line.split(' ').next().unwrap() {
            "float32" => check(line, 0, |x: f32| x.to_bits() as u64),
            "float64" => check(line, 1, f64::to_bits),
            "float16" => check(line, 0, |x: f16| x.to_bits() as u64),
            "bfloat16" => check(line, 0, |x: bf16| x.to_bits() as u64),
            other => panic!("unknown type {other}"),
        }
        lines += 1;
    }
    assert_eq!(lines, 24);
}

#[test]
fn a_clone_continues_alike_and_nothing_is_drawn_for_nothing() {
    let mut first = TorchCpuGenerator::new(9);
    first.fill_normal(&mut [0.0f32; 3]);
    let mut second = first.clone();
    second.fill_normal::<f32>(&mut []);
    let (mut a, mut b) = ([0.0f32; 20], [0.0f32; 20]);
    first.fill_normal(&mut a);
    second.fill_normal(&mut b);
    assert_eq!(a, b);
}

#[test]
fn permutations_are_pytorchs() {
    // PyTorch 2.15.0: g = torch.Generator().manual_seed(7); torch.randperm(n, generator=g) for n = 10, 1, 5.
    let mut generator = TorchCpuGenerator::new(7);
    assert_eq!(generator.permutation(10), [5, 0, 3, 4, 1, 7, 9, 6, 8, 2]);
    assert_eq!(generator.permutation(1), [0]);
    assert_eq!(generator.permutation(5), [1, 3, 0, 2, 4]);
    assert!(generator.permutation(0).is_empty());
}
