//! The quantizers against scikit-learn, the paper's definition, and their own promises.

use aquatint::raw::codec::{Bits, Grain, QuantizedMatrix, TableValues};
use packer::quantize::{CodebookType, Measured, Method, quantize, quantize_measured};
use packer::source::first_non_finite;
use serde_json::Value;
use std::path::Path;

const EVERY_TABLE: [CodebookType; 3] = [CodebookType::Int8, CodebookType::Int7, CodebookType::F16];

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn bits(n: u32) -> Bits {
    Bits::new(n).unwrap()
}

/// Bell-shaped weights whose rows differ in scale and centre.
fn weights(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let row_scale = |r: usize| 0.02 + 0.01 * (r % 7) as f32;
    (0..rows * cols).map(|i| row_scale(i / cols) * ((0..6).map(|_| next()).sum::<f32>() + 0.2)).collect()
}

fn sse(weights: &[f32], m: &QuantizedMatrix) -> f64 {
    let error = |i: usize| f64::from(weights[i]) - f64::from(m.weight(i / m.cols, i % m.cols));
    (0..weights.len()).map(|i| error(i).powi(2)).sum()
}

/// Every code indexes its table, and the parts have the codec's lengths.
fn check_form(m: &QuantizedMatrix) {
    let entries = m.bits.levels() * if m.grain == Grain::Row { m.rows } else { 1 };
    let table_len = match &m.table {
        TableValues::I8(t) => t.len(),
        TableValues::F16(t) => t.len(),
    };
    assert_eq!((table_len, m.codes.len()), (entries, m.rows * m.cols));
    assert_eq!((m.scale.len(), m.offset.len()), (m.rows, m.rows));
    assert!(m.codes.iter().all(|&c| usize::from(c) < m.bits.levels()));
    assert!(m.scale.iter().chain(&m.offset).all(|v| v.is_finite()));
}

#[test]
fn kmeans_is_never_worse_than_fifty_starts_of_scikit_learn() {
    let mut cases = 0;
    for case in fixture("kmeans.json").as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let data = floats(&case["data"]);
        for (k, result) in case["k"].as_object().unwrap() {
            // The fixture's optimum is of f64 centroids: compare before entries are rounded.
            let b = bits(k.parse::<u32>().unwrap().ilog2());
            let energy: f64 = data.iter().map(|&v| f64::from(v).powi(2)).sum();
            let inertia = result["inertia"].as_f64().unwrap();
            let optimum = result["optimal_inertia"].as_f64().unwrap();
            for method in [Method::KMeansRow, Method::KMeansTensor] {
                let got = quantize_measured(&data, 1, data.len(), method, b, CodebookType::F16);
                let ours = got.exact_error.powi(2) * energy;
                // Centroids are compared as f32: their own rounding, 2^-24 of the value, is the slack.
                let slack = energy * 2f64.powi(-46);
                assert!(ours <= inertia * (1.0 + 1e-9) + slack, "{name} k={k}: {ours:e}, scikit-learn {inertia:e}");
                assert!(ours >= optimum * (1.0 - 1e-7) - slack, "{name} k={k}: {ours:e} is below {optimum:e}");
            }
            cases += 1;
        }
    }
    assert!(cases >= 20, "{cases} cases: the fixture is not what this test expects");
}

#[test]
fn uniform_matches_the_paper_in_step_zero_point_and_weights() {
    let mut cases = 0;
    for case in fixture("uaq.json").as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let (rows, cols) = (case["rows"].as_u64().unwrap() as usize, case["cols"].as_u64().unwrap() as usize);
        let data = floats(&case["data"]);
        for (b, expected) in case["bits"].as_object().unwrap() {
            let b = bits(b.parse().unwrap());
            let m = quantize(&data, rows, cols, Method::UAQ, b, CodebookType::Int8);
            check_form(&m);
            let half = (b.levels() / 2) as f32;
            let zero: Vec<f32> = m.offset.iter().map(|o| half - o).collect();
            assert_eq!(m.scale, floats(&expected["delta"]), "{name} at {b} bits: step");
            assert_eq!(zero, floats(&expected["zp"]), "{name} at {b} bits: zero point");
            let got: Vec<f32> = (0..rows * cols).map(|i| m.weight(i / cols, i % cols)).collect();
            assert_eq!(got, floats(&expected["dequantized"]), "{name} at {b} bits: weights");
            cases += 1;
        }
    }
    assert!(cases >= 20, "{cases} cases: the fixture is not what this test expects");
}

#[test]
fn every_method_width_and_table_has_the_codecs_form_and_its_stated_error() {
    let (rows, cols) = (9, 130);
    let w = weights(rows, cols, 5);
    let energy: f64 = w.iter().map(|&v| f64::from(v).powi(2)).sum();
    for method in Method::ALL {
        let mut wider = f64::INFINITY;
        for b in Bits::ALL {
            for tables in EVERY_TABLE {
                let Measured { matrix, error, exact_error } = quantize_measured(&w, rows, cols, method, b, tables);
                check_form(&matrix);
                assert_eq!(matrix, quantize(&w, rows, cols, method, b, tables));
                let expected = (sse(&w, &matrix) / energy).sqrt();
                assert!((error - expected).abs() <= 1e-9 * expected, "{method} {b} {tables:?}: {error} {expected}");
                assert!(error >= exact_error * (1.0 - 1e-6), "{method} {b} {tables:?}: {error} < {exact_error}");
                assert!(error < wider, "{method}: {b} bits are no better than fewer: {error}");
            }
            wider = quantize_measured(&w, rows, cols, method, b, CodebookType::Int8).error;
        }
    }
}

#[test]
fn no_other_code_would_be_nearer() {
    let (rows, cols) = (5, 97);
    let w = weights(rows, cols, 6);
    for method in [Method::KMeansRow, Method::KMeansTensor] {
        for (b, tables) in Bits::ALL.into_iter().flat_map(|b| EVERY_TABLE.map(|t| (b, t))) {
            let m = quantize(&w, rows, cols, method, b, tables);
            for (i, &v) in w.iter().enumerate() {
                let distance =
                    |code: u8| (m.scale[i / cols] * (m.entry(i / cols, code) + m.offset[i / cols]) - v).abs();
                let least = (0..b.levels()).map(|c| distance(c as u8)).fold(f32::MAX, f32::min);
                let got = distance(m.codes[i]);
                assert!(got <= least + 1e-6 * v.abs() + 1e-9, "{method} {b} {tables:?}: {got} > {least}");
            }
        }
    }
}

#[test]
fn integer_tables_cost_less_than_a_percent() {
    let (rows, cols) = (32, 576);
    let w = weights(rows, cols, 7);
    for method in [Method::KMeansRow, Method::KMeansTensor] {
        for b in [2, 3, 4] {
            for (tables, most, reach) in [(CodebookType::Int8, 0.006, 127), (CodebookType::Int7, 0.012, 63)] {
                let m = quantize_measured(&w, rows, cols, method, bits(b), tables);
                let added = (m.error.powi(2) - m.exact_error.powi(2)).max(0.0).sqrt();
                assert!(added < most, "{method} {b} bits {tables:?}: rounding the table adds {added}");
                assert!(m.error < 1.01 * m.exact_error, "{method} {b} bits {tables:?}: {} {}", m.error, m.exact_error);
                let TableValues::I8(table) = &m.matrix.table else { panic!("an integer table was asked for") };
                let [low, high] = [table.iter().min(), table.iter().max()].map(|e| i32::from(*e.unwrap()));
                assert!(low == -reach && (reach - 31..=reach).contains(&high), "{method} {b} bits: {low} to {high}");
            }
        }
    }
}

#[test]
fn exact_tables_hold_the_centroids_at_scale_one() {
    let w = weights(4, 300, 8);
    for method in [Method::KMeansRow, Method::KMeansTensor] {
        let m = quantize_measured(&w, 4, 300, method, bits(4), CodebookType::F16);
        assert!(matches!(m.matrix.table, TableValues::F16(_)));
        assert!(m.matrix.scale.iter().all(|&s| s == 1.0) && m.matrix.offset.iter().all(|&o| o == 0.0));
        assert!(m.error < m.exact_error * (1.0 + 1e-4), "{} {}", m.error, m.exact_error);
    }
    // Outside f16's range a power of two takes over, and nothing is lost.
    for scale in [1e-7f32, 1e9] {
        let scaled: Vec<f32> = w.iter().map(|v| v * scale).collect();
        for method in [Method::KMeansRow, Method::KMeansTensor] {
            let m = quantize_measured(&scaled, 4, 300, method, bits(4), CodebookType::F16);
            assert!(m.error < m.exact_error * (1.0 + 1e-4), "x {scale}: {} {}", m.error, m.exact_error);
        }
    }
}

#[test]
fn the_fixed_table_is_one_for_all_and_suits_normal_rows() {
    // Sums of twelve uniform numbers are close to normal; the published error of Max's quantizers is theirs.
    let (rows, cols) = (6, 6000);
    let pairs = weights(rows, 2 * cols, 13);
    let row_scale = |r: usize| 0.02 + 0.01 * (r % 7) as f32;
    let w: Vec<f32> = (0..rows * cols).map(|i| pairs[2 * i] + pairs[2 * i + 1] - 0.4 * row_scale(i / cols)).collect();
    for (b, published) in [(2, 0.1175), (3, 0.03454), (4, 0.009497), (5, 0.002499)] {
        for tables in EVERY_TABLE {
            let m = quantize_measured(&w, rows, cols, Method::Lloyd, bits(b), tables);
            check_form(&m.matrix);
            assert_eq!(m.matrix.grain, Grain::Tensor);
            assert!(m.matrix.offset.iter().all(|&o| o == 0.0) && m.matrix.scale.iter().all(|&s| s > 0.0));
            let error = m.error.powi(2);
            assert!((error / published - 1.0).abs() < 0.06, "{b} bits {tables:?}: {error}, published {published}");
        }
    }
}

#[test]
fn uniform_levels_are_consecutive_integers_whatever_the_tables() {
    let w = weights(3, 50, 9);
    for tables in EVERY_TABLE {
        let m = quantize(&w, 3, 50, Method::UAQ, bits(3), tables);
        assert_eq!((m.table, m.grain), (TableValues::I8(vec![-4, -3, -2, -1, 0, 1, 2, 3]), Grain::Tensor));
    }
}

#[test]
fn eight_bit_integer_codes_are_the_integers() {
    let w = weights(3, 400, 10);
    for method in Method::ALL {
        let m = quantize(&w, 3, 400, method, bits(8), CodebookType::Int8);
        assert_eq!((&m.table, m.grain), (&TableValues::I8((-128..=127).collect()), Grain::Tensor));
        let shared = m.scale.iter().all(|s| *s == m.scale[0]);
        assert_eq!(shared, method == Method::KMeansTensor);
    }
    let row = quantize(&w, 3, 400, Method::KMeansRow, bits(8), CodebookType::Int8);
    assert!(row.codes.contains(&0) && row.codes.contains(&255), "the range is not used fully");
}

#[test]
fn degenerate_matrices_are_reproduced() {
    let constant = vec![-0.3f32; 24];
    let zero = vec![0f32; 24];
    let two: Vec<f32> = (0..24).map(|i| if i % 3 == 0 { 0.5 } else { -0.25 }).collect();
    for method in Method::ALL {
        for (b, tables) in Bits::ALL.into_iter().flat_map(|b| EVERY_TABLE.map(|t| (b, t))) {
            for (name, w) in [("constant", &constant), ("zero", &zero)] {
                let m = quantize_measured(w, 4, 6, method, b, tables);
                check_form(&m.matrix);
                // f16 tables hold a constant to 11 bits.
                assert!(m.error < 2f64.powi(-11), "{name} {method} {b} {tables:?}: {}", m.error);
            }
            if matches!(method, Method::KMeansRow | Method::KMeansTensor) {
                let m = quantize_measured(&two, 4, 6, method, b, tables);
                check_form(&m.matrix);
                assert!(m.error < 1e-6 || b.levels() == 256, "two values {method} {b} {tables:?}: {}", m.error);
            }
            for (rows, cols) in [(0, 0), (0, 5), (5, 0)] {
                let m = quantize_measured(&[], rows, cols, method, b, tables);
                check_form(&m.matrix);
                assert_eq!(m.error, 0.0);
            }
            check_form(&quantize(&[0.7], 1, 1, method, b, tables));
        }
    }
}

#[test]
fn extreme_but_finite_weights_do_not_panic() {
    let w =
        [f32::MAX, f32::MIN, f32::MIN_POSITIVE, f32::from_bits(1), -0.0, 1.0, f32::from_bits(2), -f32::from_bits(9)];
    for method in Method::ALL {
        for (b, tables) in Bits::ALL.into_iter().flat_map(|b| EVERY_TABLE.map(|t| (b, t))) {
            for (rows, cols) in [(1, 8), (2, 4), (8, 1)] {
                check_form(&quantize(&w, rows, cols, method, b, tables));
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (rows, cols) = (40, 2000);
    let w = weights(rows, cols, 12);
    let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let many = rayon::ThreadPoolBuilder::new().num_threads(5).build().unwrap();
    for method in Method::ALL {
        for tables in EVERY_TABLE {
            // 80 000 values x 16 levels: above the limit of the exact program for the whole tensor.
            let run = || quantize_measured(&w, rows, cols, method, bits(4), tables);
            assert_eq!(alone.install(run), many.install(run), "{method} {tables:?}");
        }
    }
}

#[test]
fn names_have_one_spelling_out_and_others_in() {
    for (method, name, other) in [
        (Method::UAQ, "mse", "uaq"),
        (Method::KMeansRow, "kmeans", "kmeans_c"),
        (Method::KMeansTensor, "kmeans_all", "kmeans_a"),
        (Method::Lloyd, "lloyd", "gauss"),
    ] {
        assert_eq!((method.name(), method.to_string().as_str()), (name, name));
        assert_eq!([Method::parse(name), Method::parse(other)], [Some(method); 2]);
    }
    assert_eq!(Method::parse("kmeans_b"), None);
}

#[test]
fn the_first_non_finite_weight_is_found_anywhere() {
    assert_eq!(first_non_finite(&[]), None);
    for len in [1usize, 5, 1023, 1024, 1025, 3000] {
        let mut w = vec![1.0f32; len];
        assert_eq!(first_non_finite(&w), None);
        for at in [0, len / 2, len - 1] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                w[at] = bad;
                w[len - 1] = f32::NAN;
                assert_eq!(first_non_finite(&w), Some(at));
                w.fill(1.0);
            }
        }
    }
}
