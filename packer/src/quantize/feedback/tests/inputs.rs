//! Unusual inputs: convolutions in blocks, few rows, constants, and what no inputs have.

use super::*;
use crate::quantize::moments::displacements;
use crate::quantize::quantize;

/// A smooth plane (height, width, channels) whose channels have much in common.
fn plane(size: usize, channels: usize, seed: u64) -> Vec<f64> {
    let mut random = Random::new(seed);
    let mix = Array2::from_shape_simple_fn((channels, channels), || random.normal());
    let mut plane = vec![0f64; size * size * channels];
    for y in 0..size {
        for x in 0..size {
            let fresh = ndarray::Array1::from_shape_simple_fn(channels, || random.normal()).dot(&mix);
            for c in 0..channels {
                let left = if x > 0 { plane[(y * size + x - 1) * channels + c] } else { 0.0 };
                let above = if y > 0 { plane[((y - 1) * size + x) * channels + c] } else { 0.0 };
                plane[(y * size + x) * channels + c] = 0.55 * (left + above) * 0.85 + fresh[c] + 0.3;
            }
        }
    }
    plane
}

/// Moments of a 3 x 3 convolution over the zero-padded plane, by displacement, from their definition.
fn convolved(size: usize, channels: usize, seed: u64) -> Moments {
    let plane = plane(size, channels, seed);
    let at = |y: isize, x: isize, c: usize| {
        let inside = |v: isize| (0..size as isize).contains(&v);
        if inside(y) && inside(x) { plane[(y as usize * size + x as usize) * channels + c] } else { 0.0 }
    };
    let pixels = (size * size) as f64;
    let all = || (0..size as isize).flat_map(|y| (0..size as isize).map(move |x| (y, x)));
    let mut lags = Vec::new();
    for (dy, dx) in (0..3).flat_map(|dy| (-2..3).map(move |dx| (dy, dx))).skip(2) {
        for (a, b) in (0..channels).flat_map(|a| (0..channels).map(move |b| (a, b))) {
            lags.push(all().map(|(y, x)| at(y, x, a) * at(y + dy, x + dx, b)).sum::<f64>() / pixels);
        }
    }
    let mut mean = Vec::new();
    for (tap, c) in (0..9).flat_map(|tap| (0..channels).map(move |c| (tap, c))) {
        mean.push(all().map(|(y, x)| at(y + tap / 3 - 1, x + tap % 3 - 1, c)).sum::<f64>() / pixels);
    }
    let second = SecondMoments::Toeplitz { channels, kernel: [3, 3], lags, centre: mean.clone() };
    Moments { rows: pixels, mean, second }
}

#[test]
fn a_convolution_in_blocks_still_gains_and_is_measured_as_a_whole() {
    let (rows, channels) = (70, 12);
    let cols = 9 * channels;
    let moments = convolved(20, channels, 1);
    assert_eq!(moments.check(), Ok(()));
    assert_eq!(displacements([3, 3]), 13);
    let all: Vec<usize> = (0..cols).collect();
    let (full, covariance) = (moments.block(&all, &all, false), moments.block(&all, &all, true));
    let w = Random::new(2).weights(rows * cols);
    let source = Array2::from_shape_fn((rows, cols), |(r, c)| f64::from(w[r * cols + c]));
    let power: f64 = objectives(&source, &full).iter().sum();
    for method in Method::ALL {
        let bits = Bits::ALL[1];
        let mut errors = Vec::new();
        // 1, 2, 3 and 12 blocks; fewer inputs than taps still make a block of one channel.
        for max_block in [cols, 60, 40, 5] {
            let options = FeedbackOptions { max_block, ..Default::default() };
            let got = with(&w, (rows, cols), method, bits, &moments, &options);
            let expected = objectives(&error_of(&w, &got.matrix), &covariance).iter().sum::<f64>() / power;
            assert!((got.output_error / expected - 1.0).abs() < 1e-6, "{method}: {} {expected}", got.output_error);
            let nearest = quantize(&w, rows, cols, method, bits, CodebookType::Int8);
            let nearest = objectives(&error_of(&w, &nearest), &full).iter().sum::<f64>() / power;
            assert!((got.nearest_output_error / nearest - 1.0).abs() < 1e-6, "{method}: {nearest}");
            assert_eq!(got.note.is_some_and(|n| n.contains("blocks")), max_block < cols);
            errors.push(got.output_error / got.nearest_output_error);
        }
        println!("{method}: {errors:.3?} of nearest");
        assert!(errors.iter().all(|&e| e < 0.6), "{method}: {errors:?}");
        assert!(errors[0] < errors[1] && errors[0] < errors[3], "{method}: {errors:?}");
    }
}

#[test]
fn moments_by_displacement_are_the_dense_ones() {
    let (rows, channels) = (20, 5);
    let cols = 9 * channels;
    let moments = convolved(12, channels, 3);
    let triangle = (0..cols).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|(i, j)| moments.at(i, j)).collect();
    let dense = Moments { second: SecondMoments::Dense(triangle), ..moments.clone() };
    let w = Random::new(4).weights(rows * cols);
    for method in Method::ALL {
        let run = |moments| run(&w, (rows, cols), method, Bits::ALL[2], moments);
        assert_eq!(run(&moments), run(&dense), "{method}");
    }
}

#[test]
fn a_long_row_in_blocks_knows_the_other_blocks_errors() {
    let (rows, cols) = (64, 160);
    let h = correlated(cols, 1e3, 5);
    let w = Random::new(6).weights(rows * cols);
    for method in Method::ALL {
        let relative = |max_block| {
            let options = FeedbackOptions { max_block, ..Default::default() };
            let got = with(&w, (rows, cols), method, Bits::ALL[1], &centred(&h), &options);
            got.output_error / got.nearest_output_error
        };
        let (one, two, five) = (relative(cols), relative(80), relative(32));
        println!("{method}: 1, 2 and 5 blocks: {one:.3}, {two:.3}, {five:.3} of nearest");
        assert!(one < two && two < five && five < 0.8, "{method}: {one} {two} {five}");
    }
}

#[test]
fn few_rows_are_made_up_for_by_damping() {
    let (rows, cols) = (30, 64);
    let x = shifted_inputs(10, cols, 7);
    let w = Random::new(8).weights(rows * cols);
    for method in Method::ALL {
        let got = run(&w, (rows, cols), method, Bits::ALL[2], &observed(&x));
        assert!(got.output_error < got.nearest_output_error, "{method}");
        assert_eq!(got.note.as_deref(), Some("10 rows for 64 inputs: damping stands in for the rest"), "{method}");
        // Without damping it is added until it suffices.
        let options = FeedbackOptions { damping: 0.0, ..Default::default() };
        let got = with(&w, (rows, cols), method, Bits::ALL[2], &observed(&x), &options);
        assert!(got.output_error < got.nearest_output_error, "{method}");
        assert!(got.note.unwrap().contains("damping had to be raised"), "{method}");
    }
}

#[test]
fn weights_of_constant_inputs_stay_nearest_and_cost_nothing() {
    let (n, rows, cols) = (300, 20, 48);
    let mut x = shifted_inputs(n, cols, 9);
    let constants = [0, 17, 46];
    for (j, value) in constants.into_iter().zip([0.0, 3.7, -250.3]) {
        x.column_mut(j).fill(value);
    }
    let w = Random::new(10).weights(rows * cols);
    for method in Method::ALL {
        let got = run(&w, (rows, cols), method, Bits::ALL[1], &observed(&x));
        assert_eq!(got.note.as_deref(), Some("3 of 48 inputs never varied"), "{method}");
        let m = &got.matrix;
        for (r, j) in (0..rows).flat_map(|r| constants.map(|j| (r, j))) {
            let distance = |code: usize| (m.scale[r] * (m.entry(r, code as u8) + m.offset[r]) - w[r * cols + j]).abs();
            let least = (0..m.bits.levels()).map(distance).fold(f32::MAX, f32::min);
            assert!(distance(usize::from(m.codes[r * cols + j])) <= least * (1.0 + 1e-5) + 1e-9, "{method} {r} {j}");
        }
        let off = x.dot(&error_of(&w, m).t()) - &ndarray::Array1::from(got.bias.clone());
        let power = x.dot(&Array2::from_shape_fn((cols, rows), |(c, r)| f64::from(w[r * cols + c])));
        let error = off.mapv(|v| v * v).sum() / power.mapv(|v| v * v).sum();
        assert!((got.output_error / error - 1.0).abs() < 1e-6, "{method}: {} {error}", got.output_error);
    }
}

#[test]
fn inputs_that_never_vary_leave_nothing_but_a_bias() {
    let (rows, cols) = (8, 20);
    let x = shifted_inputs(1, cols, 11);
    let w = Random::new(12).weights(rows * cols);
    for method in Method::ALL {
        let got = run(&w, (rows, cols), method, Bits::ALL[1], &observed(&x));
        assert_eq!(got.matrix, quantize(&w, rows, cols, method, Bits::ALL[1], CodebookType::Int8));
        assert_eq!(got.output_error, 0.0, "{method}");
        for (bias, off) in got.bias.iter().zip(error_of(&w, &got.matrix).dot(&x.row(0))) {
            assert!((bias - off).abs() < 1e-12, "{method}");
        }
    }
    // Not even a mean.
    let silent =
        Moments { rows: 5.0, mean: vec![0.0; cols], second: SecondMoments::Dense(vec![0.0; cols * (cols + 1) / 2]) };
    let got = run(&w, (rows, cols), Method::KMeansRow, Bits::ALL[1], &silent);
    assert_eq!((got.output_error, got.nearest_output_error, &got.bias[..]), (0.0, 0.0, &[0.0; 8][..]));
}

#[test]
fn weights_that_levels_hold_exactly_stay_exact() {
    let h = correlated(6, 100.0, 13);
    for method in Method::ALL {
        for bits in Bits::ALL {
            for codebook in TABLES {
                for value in [0.0f32, -0.3, 0.7] {
                    let options = FeedbackOptions::default();
                    let got = quantize_calibrated(&[value; 24], 4, 6, method, bits, codebook, &centred(&h), &options)
                        .unwrap();
                    // f16 tables hold a constant to 11 bits.
                    assert!(got.error < 2f64.powi(-11), "{method} {bits} {codebook:?} {value}: {}", got.error);
                }
            }
            for (rows, cols) in [(0, 0), (0, 6), (4, 0)] {
                let moments = if cols == 6 { centred(&h) } else { centred(&Array2::zeros((0, 0))) };
                let got = with(&[], (rows, cols), method, bits, &moments, &FeedbackOptions::default());
                assert_eq!((got.error, got.output_error, got.bias), (0.0, 0.0, vec![0.0; rows]));
            }
            let one = run(&[0.7], (1, 1), method, bits, &centred(&Array2::eye(1)));
            assert!(one.error < 1e-6, "{method} {bits}: {}", one.error);
        }
    }
}

#[test]
fn extreme_but_finite_weights_do_not_panic() {
    let w = [f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::from_bits(1), -0.0, 1.0, f32::from_bits(2), 1e30];
    for method in Method::ALL {
        for bits in Bits::ALL {
            for codebook in TABLES {
                let moments = centred(&correlated(4, 100.0, 14));
                let options = FeedbackOptions::default();
                let m = quantize_calibrated(&w, 2, 4, method, bits, codebook, &moments, &options).unwrap().matrix;
                assert!(m.scale.iter().chain(&m.offset).all(|v| v.is_finite()), "{method} {bits}");
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let moments = centred(&correlated(4, 100.0, 15));
    let good = FeedbackOptions::default();
    let call = |w: &[f32], rows, moments: &Moments, options: &FeedbackOptions| {
        quantize_calibrated(w, rows, 4, Method::KMeansRow, Bits::ALL[2], CodebookType::Int8, moments, options)
    };
    assert!(call(&[0.5; 8], 2, &moments, &good).is_ok());
    let mut skew = moments.clone();
    skew.second = SecondMoments::Dense(vec![1.0, 3.0, 1.0, 3.0, 3.0, 1.0, -3.0, -3.0, 3.0, 1.0]);
    for (w, rows, moments, options, told) in [
        (&[0.5f32; 8][..], 3, moments.clone(), good, "3 x 4 matrix"),
        (&[0.5, f32::NAN, 0.5, 0.5], 1, moments.clone(), good, "weight 1 is NaN"),
        (&[0.5; 4], 1, centred(&Array2::eye(5)), good, "5 inputs for a weight of 4"),
        (&[0.5; 4], 1, Moments { rows: 0.0, ..moments.clone() }, good, "0 rows"),
        (&[0.5; 4], 1, Moments { mean: vec![f64::NAN; 4], ..moments.clone() }, good, "mean of input 0"),
        (&[0.5; 4], 1, skew, good, "not positive definite"),
        (&[0.5; 4], 1, moments.clone(), FeedbackOptions { damping: -1.0, ..good }, "damping of -1"),
        (&[0.5; 4], 1, moments.clone(), FeedbackOptions { damping: f64::NAN, ..good }, "damping of NaN"),
        (&[0.5; 4], 1, moments.clone(), FeedbackOptions { max_block: 0, ..good }, "blocks of 0"),
    ] {
        let fault = call(w, rows, &moments, &options).unwrap_err();
        assert!(fault.contains(told), "{fault}");
    }
}
