//! How long large layers take: `cargo test --release -p packer --lib feedback::tests::speed -- --ignored --nocapture`.

use super::*;
use std::time::Instant;

/// Moments of correlated inputs of any size, made fast: a few strong directions over noise.
fn large(inputs: usize) -> Moments {
    let mut random = Random::new(1);
    let directions = Array2::from_shape_simple_fn((64, inputs), || random.normal());
    let second = directions.t().dot(&directions) / 64.0;
    let size: Vec<f64> = (0..inputs).map(|_| (random.normal() * 0.5).exp()).collect();
    let triangle = (0..inputs).flat_map(|i| (0..=i).map(move |j| (i, j)));
    let entry = |(i, j): (usize, usize)| size[i] * size[j] * (second[[i, j]] + if i == j { 0.3 } else { 0.0 });
    Moments { rows: 1e6, mean: vec![0.0; inputs], second: SecondMoments::Dense(triangle.map(entry).collect()) }
}

#[test]
#[ignore = "measures time, in release mode"]
fn large_layers_on_one_thread() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    for (rows, inputs) in [(1152, 1152), (320, 2880), (1152, 4608), (1280, 5760)] {
        let moments = large(inputs);
        let w = Random::new(2).weights(rows * inputs);
        for method in Method::ALL {
            let start = Instant::now();
            let got = pool.install(|| run(&w, (rows, inputs), method, Bits::ALL[2], &moments));
            let seconds = start.elapsed().as_secs_f64();
            let plain = Instant::now();
            pool.install(|| super::super::super::quantize(&w, rows, inputs, method, Bits::ALL[2], CodebookType::Int8));
            let [ours, nearest] = [got.output_error, got.nearest_output_error].map(f64::sqrt);
            println!(
                "{rows} x {inputs} {method}-4: {seconds:.1} s ({:.1} s to the nearest), output error {ours:.4} ({nearest:.4})",
                plain.elapsed().as_secs_f64()
            );
        }
    }
}
