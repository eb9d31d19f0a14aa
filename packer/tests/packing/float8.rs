//! Weights in floats of 8 bits, from safetensors and from files of torch: all values, and scales beside them.

use crate::common::{Scratch, fixture, load};
use packer::source::Checkpoint;
use packer::source::layout::Entry;
use packer::source::view::Part;
use safetensors::{Dtype, tensor::TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open_file(path, &mut Vec::new()).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_value_and_scale_reads_as_torch_computes_it() {
    let expected = load(&fixture("float8_expected.safetensors"));
    for name in ["float8.safetensors", "float8.zip.pt", "float8.legacy.pt"] {
        let checkpoint = open(&fixture(name));
        let keys: Vec<_> = checkpoint.keys().map(str::to_owned).collect();
        assert_eq!(keys, expected.keys().cloned().collect::<Vec<_>>(), "{name}");
        for (key, tensor) in &expected {
            assert_eq!(checkpoint.shape(key), Some(&tensor.shape[..]), "{name} {key}");
            let bits = |values: Vec<f32>| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(checkpoint.read(key).unwrap()), bits(tensor.values.clone()), "{name} {key}");
        }
    }
}

#[test]
fn parts_of_a_scaled_weight_have_its_scales() {
    let expected = load(&fixture("float8_expected.safetensors"));
    let file = open(&fixture("float8.safetensors"));
    for (layer, rows) in [("rows", true), ("column", true), ("old", false)] {
        let source = format!("e4m3fn.{layer}.weight");
        let entry = |part, dims: &[usize]| Entry {
            key: "k".into(),
            dims: dims.to_vec(),
            source: source.clone(),
            source_dims: vec![6, 4],
            part,
        };
        let values = &expected[&source].values;
        let read = |part, dims: &[usize]| file.renamed("unet", &[entry(part, dims)]).and_then(|c| c.read("k"));
        assert_eq!(read(Part::Rows(2..5), &[3, 4]).unwrap(), values[8..20]);
        assert_eq!(
            read(Part::Heads { heads: 2, which: 1 }, &[2, 4]).unwrap(),
            [&values[4..8], &values[16..20]].concat()
        );
        let turned = read(Part::Transposed, &[4, 6]);
        assert_eq!(turned.is_err(), rows, "{layer}");
        if let Err(e) = turned {
            assert!(e.to_string().contains("one scale for all rows"), "{e}");
        }
        assert_eq!(file.read_rows(&source, 1..3).unwrap(), values[4..12]);
    }
}

/// Writes tensors of these types, shapes and bytes.
fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) {
    let view = |(name, dtype, shape, bytes): &(&str, Dtype, &[usize], Vec<u8>)| {
        (name.to_string(), *dtype, shape.to_vec(), bytes.clone())
    };
    let owned: Vec<_> = tensors.iter().map(view).collect();
    let views = owned.iter().map(|(n, d, s, b)| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn what_is_no_number_or_no_scale_is_refused() {
    let scratch = Scratch::new("float8");
    let path = scratch.path("x.safetensors");
    let one = 1f32.to_le_bytes().to_vec();
    let message = |tensors: &[(&str, Dtype, &[usize], Vec<u8>)]| {
        write(&path, tensors);
        let opened = Checkpoint::open_file(&path, &mut Vec::new());
        opened.and_then(|c| c.read("a.weight").map(|_| ())).unwrap_err().to_string()
    };
    for (dtype, bits, word) in
        [(Dtype::F8_E4M3, 0x7f, "NaN"), (Dtype::F8_E4M3, 0xff, "NaN"), (Dtype::F8_E5M2, 0x7c, "inf")]
    {
        let got = message(&[("a.weight", dtype, &[2, 2], vec![0, 0, 0, bits])]);
        assert!(
            got.contains("a.weight") && got.contains("finite") && got.contains(&format!("{word} at index 3")),
            "{got}"
        );
    }
    let weight = || ("a.weight", Dtype::F8_E4M3, &[2, 2][..], vec![0x38; 4]);
    let got = message(&[weight(), ("a.weight_scale", Dtype::F32, &[3], one.repeat(3))]);
    assert!(got.contains("a.weight_scale") && got.contains("each of 2 rows") && got.contains("[3]"), "{got}");
    let got = message(&[weight(), ("a.weight_scale", Dtype::F32, &[], f32::INFINITY.to_le_bytes().to_vec())]);
    assert!(got.contains("finite"), "{got}");
    for (said, format) in [(r#"{"format": "nvfp4"}"#, "nvfp4"), ("{}", "of no format"), ("x", "of no format")] {
        let mark = ("a.comfy_quant", Dtype::U8, &[said.len()][..], said.as_bytes().to_vec());
        let got = message(&[weight(), mark]);
        assert!(got.contains("a.weight: expected weights in floats") && got.ends_with(format), "{got}");
    }
    let got = message(&[("a.weight", Dtype::U8, &[2, 2], vec![0; 4])]);
    assert!(got.contains("f8, f16, bf16, f32 or f64") && got.contains("U8"), "{got}");
}

#[test]
fn a_model_of_8_bit_floats_packs() {
    let scratch = Scratch::new("float8");
    let copy = scratch.copy_of("d2");
    let file = copy.join("transformer/diffusion_pytorch_model.safetensors");
    // Every weight becomes codes 0x30 to 0x4f, half to four, over a scale of a sixteenth.
    let tensors = load(&file);
    let mut made = Vec::new();
    let mut expected = BTreeMap::new();
    let table = load(&fixture("float8_expected.safetensors"))["e4m3fn.all.weight"].values.clone();
    for (key, tensor) in &tensors {
        if !key.ends_with(".weight") || tensor.shape.len() < 2 {
            let bytes = tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect();
            made.push((key.clone(), Dtype::F32, tensor.shape.clone(), bytes));
            expected.insert(key.clone(), tensor.values.clone());
            continue;
        }
        let inner =
            key.strip_prefix("transformer_blocks.").and_then(|k| k.split_once('.')).map_or(&key[..], |(_, k)| k);
        let codes: Vec<u8> = (0..tensor.values.len()).map(|i| 0x30 + ((i + inner.len()) % 32) as u8).collect();
        expected.insert(key.clone(), codes.iter().map(|&c| table[c as usize] / 16.0).collect());
        made.push((key.clone(), Dtype::F8_E4M3, tensor.shape.clone(), codes));
        let scale = key.replace(".weight", ".scale_weight");
        made.push((scale, Dtype::F32, vec![1], (1f32 / 16.0).to_le_bytes().to_vec()));
    }
    made.push(("scaled_fp8".into(), Dtype::F8_E4M3, vec![0], vec![]));
    let borrowed: Vec<_> = made.iter().map(|(n, d, s, b)| (&n[..], *d, &s[..], b.clone())).collect();
    write(&file, &borrowed);
    let (out, back) = (scratch.path("m.aqt"), scratch.path("w.safetensors"));
    crate::common::pack_as(&copy, Some("f32"), &out).unwrap();
    packer::unpack::unpack(&out, &back, None, packer::weights::Float::F32).unwrap();
    let got: BTreeMap<_, _> = load(&back).into_iter().map(|(key, tensor)| (key, tensor.values)).collect();
    assert_eq!(got, expected);
}
