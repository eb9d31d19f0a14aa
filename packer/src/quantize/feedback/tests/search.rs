//! The search against independent implementations and its own promises.

use super::super::levels::TileLevels;
use super::super::refit::{Normal, gather_affine, gather_levels};
use super::super::rounding::{descend, feed_back};
use super::*;
use crate::quantize::quantize;
use std::collections::HashMap;

/// The tensors of the fixture, as f64.
fn fixture() -> HashMap<String, Vec<f64>> {
    let bytes = include_bytes!("../../../../tests/fixtures/feedback.safetensors");
    let tensors = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let numbers = |t: &safetensors::tensor::TensorView| match t.dtype() {
        safetensors::Dtype::U8 => t.data().iter().map(|&b| f64::from(b)).collect(),
        safetensors::Dtype::F32 => {
            t.data().chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
        }
        _ => t.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
    };
    tensors.tensors().iter().map(|(name, t)| (name.clone(), numbers(t))).collect()
}

#[test]
fn codes_are_those_of_the_published_column_loop() {
    let fixture = fixture();
    let (rows, cols) = (64, 96);
    let h = Array2::from_shape_vec((cols, cols), fixture["second"].clone()).unwrap();
    let moments = centred(&h);
    let blocks = Blocks::new(&moments, 0.01, cols);
    let block = blocks.block(0).unwrap();
    let w = Array2::from_shape_fn((cols, rows), |(p, r)| fixture["weight"][r * cols + block.inputs[p]] as f32);
    for name in ["uniform", "codebook"] {
        let levels = &fixture[&format!("{name}.levels")];
        let levels: Vec<Vec<f64>> = levels.chunks(levels.len() / rows).map(<[f64]>::to_vec).collect();
        let expected = &fixture[&format!("{name}.codes")];
        let rounded = feed_back(&w, &TileLevels::new(&levels), &block.factor, None);
        let mut off = 0;
        for (p, &input) in block.inputs.iter().enumerate() {
            off += (0..rows).filter(|&r| f64::from(rounded.codes[[p, r]]) != expected[r * cols + input]).count();
        }
        // The fixture has no ties: its script refuses them.
        assert_eq!(off, 0, "{name}: {off} of {} codes", rows * cols);
    }
}

#[test]
fn the_whole_search_is_no_worse_than_another_program_s() {
    let fixture = fixture();
    let (rows, cols) = (64, 96);
    let h = Array2::from_shape_vec((cols, cols), fixture["second"].clone()).unwrap();
    let w: Vec<f32> = fixture["weight"].iter().map(|&v| v as f32).collect();
    for (case, expected) in fixture["search"].iter().enumerate() {
        let (method, bits) = ([Method::UAQ, Method::KMeansRow][case / 3], Bits::ALL[case % 3]);
        let m = run(&w, (rows, cols), method, bits, &centred(&h)).matrix;
        let got: f64 = objectives(&error_of(&w, &m), &h).iter().sum();
        println!("{method} {bits}: {got:.6}, theirs {expected:.6}, {:.3}", got / expected);
        assert!(got <= *expected, "{method} {bits}: {got}, the other program {expected}");
        assert!(got > 0.3 * expected, "{method} {bits}: {got} is too good to be true beside {expected}");
    }
}

#[test]
fn inputs_that_are_not_correlated_give_the_nearest_levels() {
    let (rows, cols) = (9, 200);
    let w = Random::new(3).weights(rows * cols);
    let options = FeedbackOptions { refits: 0, ..Default::default() };
    for method in Method::ALL {
        for bits in Bits::ALL {
            let got = with(&w, (rows, cols), method, bits, &centred(&Array2::eye(cols)), &options);
            let m = &got.matrix;
            for (i, &v) in w.iter().enumerate() {
                let distance =
                    |code: u8| (m.scale[i / cols] * (m.entry(i / cols, code) + m.offset[i / cols]) - v).abs();
                let least = (0..bits.levels()).map(|c| distance(c as u8)).fold(f32::MAX, f32::min);
                assert!(distance(m.codes[i]) <= least * (1.0 + 1e-5) + 1e-9, "{method} {bits}");
            }
            assert!((got.output_error.sqrt() - got.error).abs() < 1e-6 * got.error, "{method} {bits}: {got:?}");
        }
    }
}

#[test]
fn no_row_is_worse_than_rounding_to_the_nearest() {
    let mut ratios = Vec::new();
    for case in 0..100u64 {
        let mut random = Random::new(case);
        let cols = 6 + (case as usize * 7) % 40;
        let h = correlated(cols, 10f64.powi(1 + case as i32 % 4), case);
        let w = random.weights(3 * cols);
        let method = Method::ALL[case as usize % 4];
        let bits = Bits::ALL[case as usize / 4 % 3];
        let got = run(&w, (3, cols), method, bits, &centred(&h));
        let nearest = quantize(&w, 3, cols, method, bits, CodebookType::Int8);
        let h = damped(&h, 0.01);
        let (ours, plain) = (objectives(&error_of(&w, &got.matrix), &h), objectives(&error_of(&w, &nearest), &h));
        let sum = |v: &[f64]| vec![v.iter().sum::<f64>()];
        // Rows that share a table are better together.
        let (ours, plain) = if method == Method::KMeansTensor { (sum(&ours), sum(&plain)) } else { (ours, plain) };
        for (ours, plain) in ours.into_iter().zip(plain) {
            assert!(ours <= plain * (1.0 + 1e-9), "case {case}, {method} {bits}: {ours:e}, nearest {plain:e}");
            ratios.push(ours / plain);
        }
    }
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[ratios.len() / 2] < 0.5, "the median ratio is {}", ratios[ratios.len() / 2]);
}

#[test]
fn descent_comes_near_the_best_of_all_codes() {
    let bits = Bits::ALL[0];
    let mut ratios = Vec::new();
    for case in 0..200u64 {
        let cols = 3 + case as usize % 4;
        let h = correlated(cols, 100.0, case);
        let w = Random::new(case + 1000).weights(cols);
        let options = FeedbackOptions { refits: 0, ..Default::default() };
        let method = [Method::UAQ, Method::Lloyd][case as usize % 2];
        let m = with(&w, (1, cols), method, bits, &centred(&h), &options).matrix;
        let h = damped(&h, 0.01);
        let got = objectives(&error_of(&w, &m), &h)[0];
        let mut other = m.clone();
        let mut best = f64::INFINITY;
        for all in 0..4usize.pow(cols as u32) {
            (0..cols).for_each(|c| other.codes[c] = (all >> (2 * c) & 3) as u8);
            best = best.min(objectives(&error_of(&w, &other), &h)[0]);
        }
        assert!(got >= best * (1.0 - 1e-9));
        ratios.push(got / best);
    }
    ratios.sort_by(f64::total_cmp);
    assert!(ratios[100] <= 1.05, "the median is {} of the optimum", ratios[100]);
}

#[test]
fn descent_never_makes_it_worse_and_stops_where_nothing_moves() {
    let (rows, cols) = (20, 150);
    let h = damped(&correlated(cols, 1e4, 4), 0.01);
    let mut random = Random::new(5);
    let w = Array2::from_shape_simple_fn((cols, rows), || (random.normal() * 0.05) as f32);
    let levels: Vec<Vec<f64>> =
        (0..rows).map(|r| (0..8).map(|j| (j as f64 - 3.5) * (0.02 + 0.001 * r as f64)).collect()).collect();
    let levels = TileLevels::new(&levels);
    let mut codes = Array2::from_shape_simple_fn((cols, rows), || (random.uniform() * 8.0) as u8);
    let mut error = Array2::from_shape_fn((cols, rows), |(p, r)| w[[p, r]] - levels.value(r, codes[[p, r]]));
    let cross = Array2::from_shape_simple_fn((cols, rows), || random.normal() * 0.01);
    for cross in [None, Some(&cross)] {
        let value = |e: &Array2<f32>| -> Vec<f64> {
            let e = double(e);
            let linear = |r: usize| cross.map_or(0.0, |c| 2.0 * c.column(r).dot(&e.column(r)));
            objectives(&e.t().to_owned(), &h).iter().enumerate().map(|(r, v)| v + linear(r)).collect()
        };
        let mut before = value(&error);
        for sweep in 0..40 {
            let old = codes.clone();
            let gradient = single(&(h.dot(&double(&error)) + cross.unwrap_or(&Array2::zeros((cols, rows)))));
            descend(&w, (&mut codes, &mut error), &levels, single(&h).view(), gradient, (1, None));
            let after = value(&error);
            for (a, b) in after.iter().zip(&before) {
                assert!(*a <= b + 1e-6 * b.abs().max(1e-3), "sweep {sweep}: {a:e} after {b:e}");
            }
            before = after;
            if old == codes {
                break;
            }
            assert!(sweep < 39, "it never stops");
        }
        // What it keeps up to date is the error of its codes.
        for ((p, r), e) in error.indexed_iter() {
            assert_eq!(*e, w[[p, r]] - levels.value(r, codes[[p, r]]));
        }
    }
}

#[test]
fn codes_follow_their_inputs_into_another_order() {
    let (rows, cols) = (70, 60);
    let h = correlated(cols, 1e3, 6);
    let w = Random::new(7).weights(rows * cols);
    // A step that shares no factor with their number visits all inputs.
    let order: Vec<usize> = (0..cols).map(|j| (j * 17 + 5) % cols).collect();
    let turned_h = Array2::from_shape_fn((cols, cols), |(i, j)| h[[order[i], order[j]]]);
    let turned_w: Vec<f32> = (0..rows * cols).map(|i| w[i / cols * cols + order[i % cols]]).collect();
    for method in Method::ALL {
        let plain = run(&w, (rows, cols), method, Bits::ALL[1], &centred(&h)).matrix;
        let turned = run(&turned_w, (rows, cols), method, Bits::ALL[1], &centred(&turned_h)).matrix;
        let off =
            (0..rows * cols).filter(|&i| turned.codes[i] != plain.codes[i / cols * cols + order[i % cols]]).count();
        assert_eq!(off, 0, "{method}");
    }
}

#[test]
fn the_bias_takes_the_mean_error_and_errors_are_those_of_the_output() {
    let (n, rows, cols) = (500, 30, 40);
    let x = shifted_inputs(n, cols, 8);
    let w = Random::new(9).weights(rows * cols);
    let power = x.dot(&Array2::from_shape_fn((cols, rows), |(c, r)| f64::from(w[r * cols + c]))).mapv(|v| v * v).sum();
    for method in Method::ALL {
        let bits = Bits::ALL[1];
        let got = run(&w, (rows, cols), method, bits, &observed(&x));
        let off = x.dot(&error_of(&w, &got.matrix).t());
        let mean = off.sum_axis(ndarray::Axis(0)) / n as f64;
        let rms = (off.mapv(|v| v * v).sum() / off.len() as f64).sqrt();
        let largest = mean.iter().zip(&got.bias).fold(0f64, |m, (mean, bias)| m.max((mean - bias).abs()));
        assert!(largest < 1e-6 * rms, "{method}: {largest} of {rms}");
        assert!(mean.iter().fold(0f64, |m, v| m.max(v.abs())) > 0.1 * rms, "{method}: there was nothing to correct");

        let corrected = (&off - &ndarray::Array1::from(got.bias.clone())).mapv(|v| v * v).sum() / power;
        assert!((got.output_error / corrected - 1.0).abs() < 1e-6, "{method}: {} {corrected}", got.output_error);
        let nearest = quantize(&w, rows, cols, method, bits, CodebookType::Int8);
        let nearest = x.dot(&error_of(&w, &nearest).t()).mapv(|v| v * v).sum() / power;
        assert!((got.nearest_output_error / nearest - 1.0).abs() < 1e-6, "{method}: {nearest}");
    }
}

#[test]
fn a_refit_leaves_no_gradient() {
    let (rows, cols) = (6, 150);
    let h = correlated(cols, 1e4, 10);
    let moments = centred(&h);
    let blocks = Blocks::new(&moments, 0.01, cols);
    let block = blocks.block(0).unwrap();
    let h = &double(&block.second);
    let mut random = Random::new(11);
    let w = Array2::from_shape_simple_fn((cols, rows), || (random.normal() * 0.05) as f32);
    // A level that no code takes, far away.
    let levels = vec![[-0.12, -0.05, -0.01, 0.02, 0.06, 0.1, 0.15, 9.0].to_vec(); rows];
    let tile = TileLevels::new(&levels);
    let rounded = feed_back(&w, &tile, &block.factor, None);
    let entry = |code: u8| f32::from(code) - 4.0;

    let mut normals = vec![Normal::new(8); rows];
    gather_levels(&mut normals, &rounded, &block.factor, block.second.view());
    let mut shared = vec![Normal::new(8)];
    gather_levels(&mut shared, &rounded, &block.factor, block.second.view());
    let mut affine = vec![Normal::new(2); rows];
    gather_affine(&mut affine, &rounded, |_, code| entry(code), &block.factor);
    let mut scaled = vec![Normal::new(1); rows];
    gather_affine(&mut scaled, &rounded, |_, code| entry(code), &block.factor);

    // A^T H (w - A c) by definition, of each design, after the step.
    let check = |design: &dyn Fn(usize, usize) -> Vec<f64>, step: &[f64], rows: std::ops::Range<usize>| {
        let (mut left, mut size) = (vec![0f64; step.len()], vec![0f64; step.len()]);
        for r in rows {
            let a = Array2::from_shape_fn((cols, step.len()), |(p, k)| design(p, r)[k]);
            let error = |p| f64::from(w[[p, r]] - tile.value(r, rounded.codes[[p, r]]));
            let error = ndarray::Array1::from_shape_fn(cols, error);
            let rest = &error - &a.dot(&ndarray::Array1::from(step.to_vec()));
            let (rest, all) = (a.t().dot(&h.dot(&rest)), a.t().dot(&h.dot(&w.column(r).mapv(f64::from))));
            left.iter_mut().zip(rest).for_each(|(sum, v)| *sum += v);
            size.iter_mut().zip(all).for_each(|(sum, v)| *sum += v.abs());
        }
        let largest = size.iter().fold(0f64, |m, v| m.max(*v));
        assert!(left.iter().all(|v| v.abs() < 1e-6 * largest), "{left:?} of {largest}");
        assert!(step.iter().any(|v| v.abs() > 1e-6), "there was nothing to refit");
    };
    let one_hot = |p: usize, r: usize| (0..8).map(|k| f64::from(u8::from(rounded.codes[[p, r]] == k))).collect();
    for r in 0..rows {
        let step = normals[r].solve().unwrap();
        assert_eq!(step[7], 0.0, "a level without codes moved");
        check(&one_hot, &step, r..r + 1);
        let line = |p: usize, r: usize| vec![f64::from(entry(rounded.codes[[p, r]])), 1.0];
        check(&line, &affine[r].solve().unwrap(), r..r + 1);
        check(&|p, r| line(p, r)[..1].to_vec(), &scaled[r].solve().unwrap(), r..r + 1);
    }
    check(&one_hot, &shared[0].solve().unwrap(), 0..rows);
}

#[test]
fn blocks_and_their_pairs_say_what_the_whole_says() {
    let (rows, cols) = (70, 90);
    let moments = centred(&correlated(cols, 1e3, 18));
    let w = Random::new(19).weights(rows * cols);
    for method in Method::ALL {
        let form = Form::new(method, Bits::ALL[1], CodebookType::Int8, false);
        let survey = |max_block| {
            let blocks = Blocks::new(&moments, 0.0, max_block);
            let problem = Problem { weights: &w, rows, cols, form, blocks: &blocks };
            let grids = form.grids(&w, cols, &blocks.weights());
            let mut codes: Vec<u8> = (0..rows * cols).map(|i| (i * 31 % 8) as u8).collect();
            let round = problem.survey(&Cache::new(&blocks).unwrap(), &grids, &mut codes, true).unwrap();
            (round.objective, round.normals.iter().map(|n| n.solve().unwrap()).collect::<Vec<_>>())
        };
        let (objective, steps) = survey(cols);
        for max_block in [45, 31] {
            let (others, other_steps) = survey(max_block);
            for (a, b) in objective.iter().zip(&others) {
                assert!((a - b).abs() < 1e-6 * a, "{method}: {a} {b}");
            }
            // The rounding of f32 times the condition of the moments.
            let largest = steps.iter().flatten().fold(0f64, |m, v| m.max(v.abs()));
            for (a, b) in steps.iter().flatten().zip(other_steps.iter().flatten()) {
                assert!((a - b).abs() < 1e-4 * largest, "{method}: {a} {b}");
            }
        }
    }
}

#[test]
fn refits_and_sweeps_each_gain() {
    let (rows, cols) = (64, 128);
    let h = correlated(cols, 1e3, 12);
    let w = Random::new(13).weights(rows * cols);
    for (method, bits) in Method::ALL.into_iter().flat_map(|m| Bits::ALL[..3].iter().map(move |b| (m, *b))) {
        let error = |refits, sweeps| {
            let options = FeedbackOptions { refits, sweeps, ..Default::default() };
            with(&w, (rows, cols), method, bits, &centred(&h), &options).output_error
        };
        let (none, refit, both) = (error(0, 0), error(3, 0), error(3, 4));
        assert!(refit < none && both < refit * 0.98, "{method} {bits}: {none} {refit} {both}");
    }
}

#[test]
fn the_gain_is_that_of_the_moments() {
    let (rows, cols) = (64, 128);
    let h = correlated(cols, 1e4, 14);
    let mean_power = h.diag().sum() / cols as f64;
    let w = Random::new(15).weights(rows * cols);
    for method in Method::ALL {
        for bits in [2, 3, 4].map(|b| Bits::new(b).unwrap()) {
            // The output's error beside that of weights as far off in directions that know nothing of the inputs.
            let relative = |m: &QuantizedMatrix| {
                let e = error_of(&w, m);
                objectives(&e, &h).iter().sum::<f64>() / (e.mapv(|v| v * v).sum() * mean_power)
            };
            let nearest = relative(&quantize(&w, rows, cols, method, bits, CodebookType::Int8));
            let with_moments = relative(&run(&w, (rows, cols), method, bits, &centred(&h)).matrix);
            let without = relative(&run(&w, (rows, cols), method, bits, &centred(&Array2::eye(cols))).matrix);
            assert!(with_moments < 0.2, "{method} {bits}: {with_moments}");
            for blind in [nearest, without] {
                assert!((0.9..1.1).contains(&blind), "{method} {bits}: {blind}");
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (rows, cols) = (150, 200);
    let x = shifted_inputs(400, cols, 16);
    let w = Random::new(17).weights(rows * cols);
    for method in Method::ALL {
        for max_block in [cols, 70] {
            let options = FeedbackOptions { max_block, ..Default::default() };
            let run = || with(&w, (rows, cols), method, Bits::ALL[2], &observed(&x), &options);
            let pool = |n: usize| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
            let alone = pool(1).install(run);
            for threads in [2, 7] {
                assert_eq!(alone, pool(threads).install(run), "{method}, {threads} threads");
            }
        }
    }
}
