//! The letter model that the binary carries draws what reads as letters. (That its file is what calibrating and packing
//! `models/glyphs` gives is checked where both are done, in `calibrated.rs`.)

use aquatint::pipeline::{Prompts, Request, Session, swap_last_axes};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::format::Packed;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

fn models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models")
}

/// The classifier that lies beside the model, as `tools/eval_glyphs.py` evaluates it: four 3x3 convolutions of stride 2,
/// then two linear layers, ReLU between.
struct Classifier(Vec<u8>);

impl Classifier {
    fn tensor(&self, name: &str) -> (Vec<f32>, Vec<usize>) {
        let file = SafeTensors::deserialize(&self.0).expect("a safetensors file");
        let t = file.tensor(name).unwrap_or_else(|_| panic!("tensor {name}"));
        let f16 = |b: &[u8]| half::f16::from_le_bytes([b[0], b[1]]).to_f32();
        let values = match t.dtype() {
            safetensors::Dtype::F16 => t.data().chunks_exact(2).map(f16).collect(),
            safetensors::Dtype::F32 => {
                t.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
            other => panic!("{name} is {other:?}"),
        };
        (values, t.shape().to_vec())
    }

    /// The class of an image `(3, 48, 48)` in 0..1.
    fn read(&self, image: &[f32]) -> usize {
        let (mut x, mut size) = (image.iter().map(|v| v * 2.0 - 1.0).collect::<Vec<_>>(), 48);
        for layer in 1..=4 {
            let (w, dims) = self.tensor(&format!("conv{layer}.weight"));
            let (bias, _) = self.tensor(&format!("conv{layer}.bias"));
            let (o, i, half) = (dims[0], dims[1], size / 2);
            let mut y = vec![0.0; o * half * half];
            for (at, y) in y.iter_mut().enumerate() {
                let (channel, row, column) = (at / (half * half), at / half % half, at % half);
                let mut sum = bias[channel];
                for c in 0..i {
                    for tap in 0..9 {
                        let (r, q) = ((2 * row + tap / 3).wrapping_sub(1), (2 * column + tap % 3).wrapping_sub(1));
                        if r < size && q < size {
                            sum += w[(channel * i + c) * 9 + tap] * x[(c * size + r) * size + q];
                        }
                    }
                }
                *y = sum.max(0.0);
            }
            (x, size) = (y, half);
        }
        for (name, relu) in [("fc1", true), ("fc2", false)] {
            let ((w, dims), (bias, _)) = (self.tensor(&format!("{name}.weight")), self.tensor(&format!("{name}.bias")));
            let row = |r: usize| w[r * dims[1]..][..dims[1]].iter().zip(&x).map(|(w, x)| w * x).sum::<f32>() + bias[r];
            x = (0..dims[0]).map(|r| if relu { row(r).max(0.0) } else { row(r) }).collect();
        }
        (0..x.len()).max_by(|&a, &b| x[a].total_cmp(&x[b])).expect("classes")
    }
}

#[test]
fn the_embedded_model_draws_letters_that_a_classifier_reads() {
    let map = aquatint::raw::mmap::open(&models().join("glyphs-w4a8.aqt")).expect("the model maps");
    let packed = Packed::new(map).expect("the model opens");
    let model = aquatint::model::Model::new(&packed).expect("a model");
    let mut request = Request::new(&model, Prompts::Classes((0..26).collect()));
    request.steps = 25;
    let out = {
        let cpu = Cpu::best();
        Session::new(&model, &cpu).run(request.clone())
    }
    .expect("it runs");
    let classifier = Classifier(std::fs::read(models().join("glyphs/classifier.safetensors")).expect("the classifier"));
    let images = swap_last_axes(&out.images, [26, 48 * 48, 3]);
    let read: Vec<usize> = images.chunks_exact(3 * 48 * 48).map(|image| classifier.read(image)).collect();
    let right = read.iter().enumerate().filter(|(label, read)| label == *read).count();
    // The README's table has 95 % of 520 letters; 21 of 26 leaves room for other instruction sets' rounding.
    assert!(right >= 21, "{right} of 26 letters are read as what they should be: {read:?}");
}
