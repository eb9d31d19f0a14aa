//! Inception against torch-fidelity, and its pictures against torch-fidelity, clean-fid and Pillow; see fixtures/make_inception.py.

mod formula;

use aquatint_evaluation::network::{Inception, Map, Resize, resize};
use formula::{Formula, picture};
use safetensors::SafeTensors;
use std::path::Path;

fn expected(name: &str) -> (Vec<f32>, Vec<usize>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/inception.safetensors");
    let file = std::fs::read(path).expect("the fixture");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors");
    let view = tensors.tensor(name).expect("a tensor of the fixture");
    (view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(), view.shape().to_vec())
}

/// Largest difference, as a share of the largest value.
fn off(got: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(got.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    got.iter().zip(expected).fold(0.0f32, |most, (a, b)| most.max((a - b).abs())) / scale
}

/// Sums of up to 2048 products in another order, 94 layers deep, in f32, whose last bit is 6e-8: each layer adds some of it, and
/// its weights, normalised ahead, another; measured 6e-7.
#[test]
fn features_are_torch_fidelitys() {
    let [tensorflow, clean] =
        [Resize::Tensorflow, Resize::Clean].map(|resize| Inception::new(&Formula(&[]), resize).expect("all tensors"));
    for (i, (size, block)) in [([37, 53], 3), ([299, 299], 11), ([340, 310], 1)].into_iter().enumerate() {
        let picture: Vec<f32> = picture(&format!("picture_{i}"), size, block).iter().map(|v| v / 255.0).collect();
        let (features, logits) = tensorflow.read(&picture, size);
        let worst = off(&features, &expected(&format!("tensorflow_{i}")).0);
        assert!(worst < 1e-5, "features of picture {i}: {worst}");
        let worst = off(&logits, &expected(&format!("logits_{i}")).0);
        assert!(worst < 1e-5, "outputs of picture {i}: {worst}");
        let worst = off(&clean.read(&picture, size).0, &expected(&format!("clean_{i}")).0);
        assert!(worst < 1e-5, "clean features of picture {i}: {worst}");
    }
}

#[test]
fn pictures_are_resized_as_others_resize_them() {
    let small = Map { size: [13, 10], channels: 3, values: picture("small", [13, 10], 2) };
    for (name, size) in [("up", [17, 23]), ("down", [4, 6]), ("flat", [3, 10])] {
        // Rounding of f32 alone: Pillow and this sum in f64, TensorFlow's rule is three sums.
        for (rule, made) in [("bilinear", resize::bilinear(&small, size)), ("bicubic", resize::bicubic(&small, size))] {
            let (values, dims) = expected(&format!("{rule}_{name}"));
            assert_eq!(dims, [size[0], size[1], 3]);
            let worst = off(&made.values, &values);
            assert!(worst < 2e-7, "{rule} {name}: {worst}");
        }
        let bytes = resize::bicubic_bytes(&small, size);
        assert_eq!(bytes.values, expected(&format!("bytes_{name}")).0, "{name}: byte for byte");
        assert_eq!(resize::bilinear(&small, small.size), small);
        assert_eq!(resize::bicubic(&small, small.size), small);
    }
}
