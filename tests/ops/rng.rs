//! The normal streams: PyTorch's bit for bit, and the statistics of the fast one.

use aquatint::raw::rng::{FastRng, Normals, TorchRng};
use safetensors::SafeTensors;

fn fixture() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/randn.safetensors");
    std::fs::read(path).expect(path)
}

fn tensor(file: &SafeTensors, name: &str) -> Vec<f32> {
    let view = file.tensor(name).expect(name);
    assert_eq!(view.dtype(), safetensors::Dtype::F32, "{name}");
    view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn draw(rng: &mut impl Normals, n: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; n];
    rng.randn(&mut out);
    out
}

fn assert_bits(got: &[f32], want: &[f32], name: &str) {
    assert_eq!(got.len(), want.len(), "{name}");
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.to_bits(), want.to_bits(), "{name}[{i}]: got {got:?}, torch has {want:?}");
    }
}

#[test]
fn single_draws_are_torch() {
    let bytes = fixture();
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    for seed in [0, 42, 1234567, (1 << 40) + 7] {
        for n in [1, 5, 15, 16, 17, 31, 48, 100, 1000, 4096] {
            let name = format!("seed{seed}.n{n}");
            assert_bits(&draw(&mut TorchRng::new(seed), n), &tensor(&file, &name), &name);
        }
    }
}

#[test]
fn sequences_of_draws_are_torch() {
    // Short draws keep the second value of a pair, across long draws too; long ones draw their tail twice.
    let bytes = fixture();
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let sequences: [&[usize]; 6] =
        [&[5, 20, 3], &[1, 1, 1, 1], &[3, 16, 4], &[17, 5, 16, 2], &[15, 15], &[100, 7, 100]];
    for seed in [0, 42, 1234567, (1 << 40) + 7] {
        for lengths in sequences {
            let mut rng = TorchRng::new(seed);
            let label = lengths.iter().map(usize::to_string).collect::<Vec<_>>().join("_");
            for (i, &n) in lengths.iter().enumerate() {
                let name = format!("seed{seed}.calls{label}.{i}");
                assert_bits(&draw(&mut rng, n), &tensor(&file, &name), &name);
            }
        }
    }
}

#[test]
fn latents_of_a_pipeline_are_torch() {
    let bytes = fixture();
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    for variant in ["d2", "d3odd", "d1p1"] {
        let want = tensor(&file, &format!("latents.{variant}"));
        assert_bits(&draw(&mut TorchRng::new(42), want.len()), &want, variant);
    }
}

#[test]
fn a_million_values_are_torch() {
    // The last bit of some polynomial coefficients shows only once in thousands of values. The sums are those of
    //   b = torch.randn(1 << 20, generator=torch.Generator().manual_seed(seed)).numpy().view("u4").astype("u8")
    //   (b * (2 * numpy.arange(1 << 20, dtype="u8") + 1)).sum(dtype="u8")
    // with torch 2.15.0 on an x86 CPU.
    for (seed, want) in [(1, 0x235c_7aff_521d_9279), ((1 << 40) + 7, 0x0883_e94f_f146_b713)] {
        let values = draw(&mut TorchRng::new(seed), 1 << 20);
        let term = |(i, v): (usize, &f32)| u64::from(v.to_bits()).wrapping_mul(2 * i as u64 + 1);
        let sum = values.iter().enumerate().map(term).fold(0, u64::wrapping_add);
        assert_eq!(sum, want, "seed {seed}");
    }
}

#[test]
fn torch_ignores_the_high_half_of_a_seed() {
    assert_bits(&draw(&mut TorchRng::new((1 << 40) + 7), 33), &draw(&mut TorchRng::new(7), 33), "2^40 + 7");
    assert_ne!(draw(&mut TorchRng::new(8), 33), draw(&mut TorchRng::new(7), 33));
}

#[test]
fn fast_stream_is_pinned() {
    // Pictures made with a seed must stay reproducible: these bits may change only with a major version.
    let bits: Vec<u32> = draw(&mut FastRng::new(1), 6).iter().map(|v| v.to_bits()).collect();
    let want = [0xbe094504, 0xbeaa9715, 0xbf04818b, 0x3e1f2a7c, 0xbf38a740, 0xbf29fbb8];
    assert_eq!(bits, want, "{bits:#010x?}");
}

#[test]
fn fast_images_do_not_depend_on_the_batch() {
    for k in 0..4 {
        assert_eq!(draw(&mut FastRng::for_image(10, k), 50), draw(&mut FastRng::new(10 + k), 50));
    }
    assert_eq!(draw(&mut FastRng::for_image(u64::MAX, 1), 5), draw(&mut FastRng::new(0), 5));
    // An odd length is the start of the even one, and a draw goes on where the last one ended.
    assert_eq!(draw(&mut FastRng::new(3), 7), draw(&mut FastRng::new(3), 8)[..7]);
    let mut rng = FastRng::new(3);
    let halves = [draw(&mut rng, 20), draw(&mut rng, 20)].concat();
    assert_eq!(halves, draw(&mut FastRng::new(3), 40));
}

#[test]
fn fast_values_are_standard_normal() {
    let n = 1 << 20;
    let values = draw(&mut FastRng::new(12345), n);
    let moment = |p: i32| values.iter().map(|&v| f64::from(v).powi(p)).sum::<f64>() / n as f64;
    // Five standard errors of each moment: sqrt(var(x^p) / n), with var 1, 2, 15 and 96.
    for (p, want, var) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0f64)] {
        let got = moment(p);
        assert!((got - want).abs() < 5.0 * (var / n as f64).sqrt(), "moment {p}: {got}");
    }
    let below = |x: f32| values.iter().filter(|&&v| v < x).count() as f64 / n as f64;
    for (x, want) in [(-2.0, 0.022750), (-1.0, 0.158655), (0.0, 0.5), (0.5, 0.691462), (3.0, 0.998650)] {
        assert!((below(x) - want).abs() < 5.0 * (want * (1.0 - want) / n as f64).sqrt() + 1e-6, "P(v < {x})");
    }
}

#[test]
fn fast_neighbours_are_independent() {
    // Images of one run have seeds K, K + 1, ...; also the two values of a word must not be correlated.
    let n = 1 << 16;
    let limit = 5.0 / (n as f64).sqrt();
    let correlation = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() / a.len() as f64
    };
    for seed in [0, 1, 41, u64::MAX - 1, 1 << 32] {
        let (a, b) = (draw(&mut FastRng::for_image(seed, 0), n), draw(&mut FastRng::for_image(seed, 1), n));
        assert!(correlation(&a, &b).abs() < limit, "seeds {seed} and its successor");
        assert!(correlation(&a[1..], &a[..n - 1]).abs() < limit, "seed {seed}, lag 1");
    }
}
