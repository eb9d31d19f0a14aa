//! Uniform levels by every published rule, against torch.

use aquatint::raw::codec::{Bits, TableValues};
use packer::quantize::{
    CodebookType, FeedbackOptions, Method, Moments, Rule, SecondMoments, quantize, quantize_calibrated,
};
use safetensors::SafeTensors;
use std::path::Path;

/// Rows and columns of the fixture.
const SHAPE: (usize, usize) = (9, 45);

/// The fixture's file.
fn fixture() -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/rules.safetensors")).unwrap()
}

fn floats(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    tensors.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

fn source(rule: Rule) -> &'static str {
    if rule == Rule::MseHalf { "rows_f16" } else { "rows" }
}

#[test]
fn steps_zero_points_and_codes_are_those_of_the_projects() {
    let bytes = fixture();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let (rows, cols) = SHAPE;
    for rule in Rule::ALL {
        let weights = floats(&tensors, source(rule));
        for bits in Bits::ALL {
            let what = |part| format!("{}.{bits}.{part}", rule.name());
            let m = quantize(&weights, rows, cols, Method::Uniform(rule), bits, CodebookType::Int8);
            let half = (bits.levels() / 2) as f32;
            let zero: Vec<f32> = m.offset.iter().map(|offset| half - offset).collect();
            assert_eq!(m.scale, floats(&tensors, &what("step")), "{}", what("step"));
            assert_eq!(zero, floats(&tensors, &what("zero")), "{}", what("zero"));
            assert_eq!(m.codes, tensors.tensor(&what("codes")).unwrap().data(), "{}", what("codes"));
            let expected: Vec<i8> = (0..bits.levels() as i32).map(|q| (q - bits.levels() as i32 / 2) as i8).collect();
            assert_eq!(m.table, TableValues::I8(expected));
        }
    }
}

#[test]
fn calibrated_a_rule_keeps_its_levels_and_codes_serve_the_output() {
    let bytes = fixture();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    // The first rows are bell-shaped; some rules cut others off, and no code mends that.
    let (rows, cols) = (3, SHAPE.1);
    // Neighbours that vary together: 0.9 to the power of their distance.
    let triangle = (0..cols).flat_map(|i| (0..=i).map(move |j| 0.9f64.powi((i - j) as i32)));
    let moments =
        Moments { rows: 1e4, mean: vec![0.0; cols], second: SecondMoments::Dense(triangle.collect::<Vec<_>>()) };
    for rule in Rule::ALL.into_iter().filter(|&rule| rule != Rule::Mse) {
        let weights = &floats(&tensors, source(rule))[..rows * cols];
        for bits in [3, 4].map(|b| Bits::new(b).unwrap()) {
            let method = Method::Uniform(rule);
            let nearest = quantize(weights, rows, cols, method, bits, CodebookType::Int8);
            let options = FeedbackOptions::default();
            let got =
                quantize_calibrated(weights, rows, cols, method, bits, CodebookType::Int8, &moments, &options).unwrap();
            assert_eq!((&got.matrix.scale, &got.matrix.offset), (&nearest.scale, &nearest.offset), "{method}");
            assert!(got.output_error < 0.8 * got.nearest_output_error, "{method} {bits}: {got:?}");
        }
    }
}

#[test]
fn rows_without_a_step_are_exact() {
    for rule in Rule::ALL {
        for value in [0.0f32, 0.37, -0.37, 1e-30] {
            let m = quantize(&[value; 5], 1, 5, Method::Uniform(rule), Bits::ALL[2], CodebookType::Int8);
            for k in 0..5 {
                let got = m.weight(0, k);
                // It cuts off a quarter at 4 bits.
                let slack = if rule == Rule::SymMaxScale { 0.25 } else { 0.0 };
                assert!((got - value).abs() <= (slack + 1e-6) * value.abs(), "{}: {value} became {got}", rule.name());
            }
        }
    }
}

#[test]
fn every_rule_is_found_by_its_name() {
    for rule in Rule::ALL {
        assert_eq!(Method::parse(rule.name()), Some(Method::Uniform(rule)));
        assert_eq!(Method::Uniform(rule).to_string(), rule.name());
    }
}
