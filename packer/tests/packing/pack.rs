//! Packing the fixture models: every precision, the result's soundness, what it says of itself, and determinism.

use crate::common::{MODELS, Scratch, fixture, model, pack_as};
use aquatint::raw::codec::layout::{PackedMatrix, Tables};
use aquatint::raw::format::{Packed, TensorKind, TensorView};
use aquatint::raw::mmap;
use aquatint::raw::program::{LayerNorm, Op, Pointwise, Role};
use std::fs;

#[test]
fn every_model_in_every_precision_is_sound() {
    let scratch = Scratch::new("precisions");
    for name in MODELS {
        for spec in ["f32", "f16", "w4a8", "w8a8", "w4a8:kmeans", "w3a8", "w4a16:kmeans_a", "w6a6"] {
            let out = scratch.path(&format!("{name}.aqt"));
            let report = pack_as(&model(name), Some(spec), &out).unwrap_or_else(|e| panic!("{name} {spec}: {e}"));
            let packed = Packed::new(mmap::open(&out).unwrap()).unwrap();
            packed.verify().unwrap_or_else(|e| panic!("{name} {spec}: {e}"));
            assert_eq!(report.file_bytes, packed.as_bytes().len() as u64);
            for layer in &report.layers {
                let limit = match layer.bits {
                    32 => 0.0,
                    16 => 5e-4,
                    8 => 0.02,
                    6 => 0.1,
                    4 => 0.2,
                    _ => 0.4,
                };
                assert!(layer.meta.error <= limit, "{name} {spec} {}: error {}", layer.meta.name, layer.meta.error);
            }
        }
    }
}

#[test]
fn every_layer_can_be_quantized_when_named() {
    let scratch = Scratch::new("everything");
    let config = scratch.path("all.json");
    for (value, bits) in [("w4a8", 4), ("w3a8:kmeans", 3), ("w8a6:kmeans_a", 8), ("w2a16:kmeans", 2)] {
        fs::write(&config, format!(r#"{{"*": "{value}"}}"#)).unwrap();
        for name in MODELS {
            let out = scratch.path("all.aqt");
            let options = packer::emit::Options {
                model: model(name),
                q_config: Some(config.to_str().unwrap().into()),
                vae_q_config: Some(config.to_str().unwrap().into()),
                output: out.clone(),
                ..Default::default()
            };
            let report = packer::emit::pack(&options, &mut |_| ()).unwrap();
            assert!(report.layers.iter().all(|l| l.bits == bits), "{name} {value}");
            for layer in report.layers.iter().filter(|l| l.meta.activation_bits == 32 && !value.ends_with("a16:kmeans"))
            {
                // The latents of d1p1 have 3 channels.
                assert_eq!((name, layer.meta.name.as_str()), ("d1p1", "vae/decoder.conv_in"), "{value}");
                assert!(layer.meta.note.as_ref().unwrap().contains("multiple of 4"));
            }
            Packed::new(mmap::open(&out).unwrap()).unwrap().verify().unwrap();
        }
    }
}

/// Learned tables of up to 16 integers keep to 7 bits where that is asked for; others are as they were.
#[test]
fn learned_tables_are_narrow_where_it_is_asked_for() {
    let scratch = Scratch::new("narrow");
    for (spec, method) in
        [("w4a8:kmeans", "kmeans-4"), ("w3a8:kmeans_all", "kmeans_all-3"), ("w6a8:kmeans", "none"), ("w4a8", "none")]
    {
        let [wide, narrow] = [false, true].map(|narrow_codebooks| {
            let out = scratch.path(&format!("{narrow_codebooks}.aqt"));
            let options = packer::emit::Options {
                model: model("d2"),
                q_config: Some(spec.into()),
                output: out.clone(),
                narrow_codebooks,
                ..Default::default()
            };
            let report = packer::emit::pack(&options, &mut |_| ()).unwrap();
            (report, Packed::new(mmap::open(&out).unwrap()).unwrap())
        });
        let reach = |packed: &Packed<mmap::FileBytes>, i: usize| match packed.tensor(i) {
            TensorView::Codes(PackedMatrix { tables: Tables::I8(t), .. }) => t.iter().map(|e| e.unsigned_abs()).max(),
            _ => None,
        };
        let mut changed = 0;
        for i in 0..wide.1.tensors().len() {
            let [before, after] = [&wide.1, &narrow.1].map(|packed| reach(packed, i));
            if before != after {
                assert_eq!((before, after), (Some(127), Some(63)), "{spec}");
                changed += 1;
            }
        }
        let learned =
            wide.0.layers.iter().filter(|layer| layer.meta.method == method && layer.meta.activation_bits == 8);
        assert_eq!(changed, learned.count(), "{spec}");
        assert_eq!(changed > 0, method != "none", "{spec}");
        for (wide, narrow) in wide.0.layers.iter().zip(&narrow.0.layers) {
            assert!(narrow.meta.error <= 1.02 * wide.meta.error, "{spec} {}", wide.meta.name);
        }
    }
}

#[test]
fn a_default_spares_small_layers_and_an_entry_does_not() {
    let scratch = Scratch::new("default");
    let config = scratch.path("q.toml");
    fs::write(&config, "default = \"w4a8\"\n[layers]\n\"*.attn1.to_q\" = \"w8a8\"\nproj_out_2 = \"f32\"\n").unwrap();
    let report = pack_as(&model("d2"), config.to_str(), &scratch.path("m.aqt")).unwrap();
    let method = |layer: &str| {
        report.layers.iter().find(|l| l.meta.name == format!("transformer/{layer}")).unwrap().meta.method.clone()
    };
    assert_eq!(method("transformer_blocks.1.attn1.to_q"), "mse-8", "32 inputs, named by a glob");
    assert_eq!(method("transformer_blocks.1.attn1.to_k"), "f16", "32 inputs, not named");
    assert_eq!(method("transformer_blocks.1.ff.net.2"), "mse-4", "128 inputs, not named");
    assert_eq!(method("proj_out_2"), "f32");
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let scratch = Scratch::new("determinism");
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for spec in ["f16", "w4a8", "w3a8:kmeans", "w4a16:kmeans_a"] {
        let (a, b) = (scratch.path("a.aqt"), scratch.path("b.aqt"));
        one.install(|| pack_as(&model("d3odd"), Some(spec), &a)).unwrap();
        three.install(|| pack_as(&model("d3odd"), Some(spec), &b)).unwrap();
        assert!(fs::read(a).unwrap() == fs::read(b).unwrap(), "{spec}");
    }
}

#[test]
fn the_file_tells_of_its_model() {
    let scratch = Scratch::new("meta");
    let out = scratch.path("m.aqt");
    pack_as(&model("d2"), None, &out).unwrap();
    let packed = Packed::new(mmap::open(&out).unwrap()).unwrap();
    let meta = packed.meta();
    let pipeline = &meta.pipeline;
    assert_eq!((pipeline.name.as_str(), pipeline.class.as_str()), ("d2", "DiTPipeline"));
    assert_eq!((pipeline.latent_channels, pipeline.latent_size, pipeline.pixels_per_latent), (4, [8, 8], 2));
    assert_eq!((pipeline.classes, pipeline.null_class, pipeline.steps), (10, 10, 50));
    assert_eq!(pipeline.guidance_scale, 4.0);
    assert_eq!(pipeline.class_names.len(), 10);
    assert_eq!(pipeline.class_names[&3], "class 3, alias 3");
    assert_eq!(meta.quantization.config, "transformer f16, vae f16");
    assert_eq!(meta.quantization.average_bits, 16.0);
    let files: Vec<_> = meta.sources.iter().map(|s| s.file.as_str()).collect();
    assert_eq!(
        files,
        [
            "model_index.json",
            "scheduler/scheduler_config.json",
            "transformer/config.json",
            "transformer/diffusion_pytorch_model.safetensors",
            "vae/config.json",
            "vae/diffusion_pytorch_model.safetensors",
        ]
    );
    for source in &meta.sources {
        let bytes = fs::read(model("d2").join(&source.file)).unwrap();
        assert_eq!(source.xxh3, format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&bytes)));
        assert_eq!(source.bytes, bytes.len() as u64);
    }
    // Block 1 has copies of block 0's time MLP (two weights, two biases) and class table.
    assert_eq!(meta.aliases.len(), 5);
    let table = "transformer/transformer_blocks.0.norm1.emb.class_embedder.embedding_table.weight";
    assert_eq!(meta.aliases[table], [table.replace("blocks.0", "blocks.1")]);
    assert!(packed.tensors().iter().all(|t| !t.name.contains("blocks.1.norm1.emb")));

    let proj = packed.tensors().iter().find(|t| t.name == "transformer/pos_embed.proj.weight").unwrap();
    assert_eq!((proj.dims.as_slice(), proj.kind), (&[32, 2, 2, 4][..], TensorKind::F16));
    let bias = packed.tensors().iter().find(|t| t.name == "transformer/pos_embed.proj.bias").unwrap();
    assert_eq!(bias.kind, TensorKind::F32);
}

#[test]
fn embedders_are_shared_where_they_are_equal() {
    let scratch = Scratch::new("own");
    let out = scratch.path("m.aqt");
    pack_as(&model("d4own"), None, &out).unwrap();
    let packed = Packed::new(mmap::open(&out).unwrap()).unwrap();
    // Block 1 has its own embedder, block 2 block 1's MLP and a table of its own, block 3 all of block 0's.
    let aliases: Vec<_> = packed.meta().aliases.iter().map(|(name, copies)| (&name[..], &copies[..])).collect();
    let key = |block: usize, name: &str| format!("transformer/transformer_blocks.{block}.norm1.emb.{name}");
    let mlp = ["linear_1.bias", "linear_1.weight", "linear_2.bias", "linear_2.weight"];
    let copied = [(0, "class_embedder.embedding_table.weight".to_owned(), 3)]
        .into_iter()
        .chain([(0, 3), (1, 2)].iter().flat_map(|&(a, b)| mlp.map(|name| (a, format!("timestep_embedder.{name}"), b))));
    let expected: Vec<_> = copied.map(|(a, name, b)| (key(a, &name), vec![key(b, &name)])).collect();
    assert_eq!(aliases, expected.iter().map(|(a, b)| (&a[..], &b[..])).collect::<Vec<_>>());
    let denoiser = packed.program(Role::Denoiser).unwrap();
    let count = |end: &str| denoiser.nodes.iter().filter(|n| n.path.ends_with(end)).count();
    assert_eq!([count("time_proj"), count("linear_2"), count("embedding_table"), count(".silu")], [1, 2, 3, 3]);

    // Nothing is shared between layers, even where all of them are zero.
    let zero = scratch.copy_of("d2");
    crate::common::edit_weights(&zero, "transformer", |w| {
        w.values_mut().filter(|t| t.shape.len() == 1).for_each(|t| t.values.fill(0.0));
    });
    pack_as(&zero, None, &out).unwrap();
    let packed = Packed::new(mmap::open(&out).unwrap()).unwrap();
    for (name, copies) in &packed.meta().aliases {
        assert_eq!(*copies, [name.replace("blocks.0", "blocks.1")]);
    }
    assert_eq!(packed.meta().aliases.len(), 5);
}

#[test]
fn integer_layers_read_codes_that_norms_make() {
    let scratch = Scratch::new("passes");
    let (out, config) = (scratch.path("m.aqt"), scratch.path("all.json"));
    fs::write(&config, r#"{"*": "w4a8"}"#).unwrap();
    pack_as(&model("d2"), config.to_str(), &out).unwrap();
    let packed = Packed::new(mmap::open(&out).unwrap()).unwrap();
    let denoiser = packed.program(Role::Denoiser).unwrap();
    let count = |name: &str| denoiser.nodes.iter().filter(|n| n.op.name() == name).count();
    // Apart from norms: patches, time embedding, its hidden layer, silu (shared by both blocks and the final layer),
    // and in each of two blocks the attended values and the MLP's hidden ones.
    assert_eq!(count("quantize"), 4 + 2 * 2);
    assert_eq!(count("layer_norm"), 2 * 2 + 1);
    for node in &denoiser.nodes {
        if let Op::LayerNorm(LayerNorm { quantize, .. }) = node.op {
            assert_eq!(quantize.map(|q| q.bits), Some(8), "{}", node.path);
        }
    }
    let decoder = packed.program(Role::VaeDecoder).unwrap();
    assert!(decoder.nodes.iter().all(|n| n.op.quantizes().is_none()), "the decoder was not asked to");
    // Six linear layers per block, of which the attention's three share their codes.
    assert_eq!(count("linear"), 1 + 2 + 2 * 7 + 2);
}

#[test]
fn configurations_of_qua2sedimo_apply() {
    let scratch = Scratch::new("qua2sedimo");
    let out = scratch.path("m.aqt");
    let report = pack_as(&model("d2"), fixture("qua2sedimo.pkl").to_str(), &out).unwrap();
    let method = |layer: &str| {
        let line = report.layers.iter().find(|l| l.meta.name == format!("transformer/{layer}"));
        line.unwrap_or_else(|| panic!("{layer}")).meta.method.clone()
    };
    assert_eq!(method("pos_embed.proj"), "kmeans-4");
    // Block 1's own entry for the shared layer, kmeans-4, gives way to block 0's.
    assert_eq!(method("transformer_blocks.0.norm1.emb.timestep_embedder.linear_1"), "mse-3");
    assert_eq!(method("transformer_blocks.1.ff.net.0.proj"), "kmeans_all-4");
    assert_eq!(method("proj_out_2"), "kmeans-4");
    let vae: Vec<_> = report.layers.iter().filter(|l| l.meta.name.starts_with("vae/")).collect();
    assert!(!vae.is_empty() && vae.iter().all(|l| l.meta.method == "f16"));

    // The average by hand: (rows, inputs, method) of each layer, copies counted again.
    let tables = |rows: u64, method: &str| match method.rsplit_once('-').unwrap() {
        ("mse", _) => 4 * rows,
        ("kmeans", b) => (2 * rows) << b.parse::<u64>().unwrap(),
        (_, b) => 2 << b.parse::<u64>().unwrap(),
    };
    let (mut quantized, mut raw) = (0, 0);
    for layer in report.layers.iter().filter(|l| l.meta.name.starts_with("transformer/")) {
        let weight = format!("{}.weight", layer.meta.name);
        let packed = Packed::new(mmap::open(&out).unwrap()).unwrap();
        let rows = packed.tensors().iter().find(|t| t.name == weight).unwrap().matrix().0 as u64;
        let times = if layer.meta.name.contains("timestep_embedder") { 2 } else { 1 };
        quantized += times * (layer.weights * u64::from(layer.bits) / 8 + tables(rows, &layer.meta.method));
        raw += times * layer.weights * 2;
    }
    assert_eq!(report.average_bits, 16.0 * quantized as f64 / raw as f64);
}

#[test]
fn old_class_and_attention_names_are_understood() {
    let scratch = Scratch::new("old");
    let old = scratch.copy_of("d2");
    crate::common::edit_json(&old.join("transformer/config.json"), |c| {
        c.insert("_class_name".into(), "Transformer2DModel".into());
        c.insert("num_vector_embeds".into(), serde_json::Value::Null);
    });
    crate::common::edit_weights(&old, "vae", |weights| {
        for (new, old) in [("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")] {
            for kind in ["weight", "bias"] {
                let path = "mid_block.attentions.0";
                let tensor = weights.remove(&format!("decoder.{path}.{new}.{kind}")).unwrap();
                weights.insert(format!("decoder.{path}.{old}.{kind}"), tensor);
            }
        }
    });
    let (a, b) = (scratch.path("a.aqt"), scratch.path("b.aqt"));
    pack_as(&old, None, &a).unwrap();
    pack_as(&model("d2"), None, &b).unwrap();
    let (a, b) = (Packed::new(mmap::open(&a).unwrap()).unwrap(), Packed::new(mmap::open(&b).unwrap()).unwrap());
    assert!(a.tensors().iter().any(|t| t.name == "vae/decoder.mid_block.attentions.0.proj_attn.weight"));
    // The programs differ in the names of those four layers only.
    for (x, y) in a.programs().iter().zip(b.programs()) {
        assert!(x.nodes.iter().zip(&y.nodes).all(|(x, y)| x.op == y.op));
    }
}

#[test]
fn a_decoder_without_its_optional_parts() {
    let scratch = Scratch::new("optional");
    let lean = scratch.copy_of("d2");
    crate::common::edit_json(&lean.join("vae/config.json"), |c| {
        c.insert("use_post_quant_conv".into(), false.into());
        c.insert("mid_block_add_attention".into(), false.into());
        c.insert("shift_factor".into(), 0.25.into());
    });
    crate::common::edit_weights(&lean, "vae", |w| {
        w.retain(|key, _| !key.contains("post_quant_conv") && !key.contains("attentions"));
    });
    let out = scratch.path("m.aqt");
    pack_as(&lean, None, &out).unwrap();
    let packed = Packed::new(mmap::open(&out).unwrap()).unwrap();
    let decoder = packed.program(Role::VaeDecoder).unwrap();
    assert!(decoder.nodes.iter().all(|n| n.op.name() != "attention"));
    let Op::Pointwise(Pointwise { mul, add, .. }) = decoder.nodes[0].op else { panic!("{:?}", decoder.nodes[0]) };
    assert_eq!((mul, add), ((1.0 / 0.18215) as f32, 0.25));
}
