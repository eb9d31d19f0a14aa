//! The network as it is walked through, against the runtime's own calls.

use super::block;
use super::samples::{Calls, Shapes, filled};
use super::segments::segments;
use crate::calibrate::{Settings, samples, states};
use crate::emit::{Options, pack};
use crate::reverse::Array;
use crate::source::donors::Donors;
use aquatint::Model;
use aquatint::options::SamplingOptions;
use aquatint::pipeline::{ModelCall, Session};
use aquatint::raw::backend::cpu::Cpu;
use aquatint::raw::format::{Packed, TensorKind, TensorView};
use aquatint::raw::program::{Role, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder of the test's own, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("packer-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Roundings of a whole network, of its largest number.
const ROUNDINGS: f32 = 256.0;

#[test]
fn segments_make_of_what_is_looked_at_what_the_runtime_makes() {
    let texts = Some("a red cat on the low sky\nfog\n");
    for (model, guidance, prompts) in [
        ("dit/d2", Some(3.0), Some("class 0\n3\n")),
        ("dit/d4own", Some(3.0), None),
        ("unet/asym", None, None),
        ("unet/sym", None, None),
        ("sd/v1", Some(5.0), Some("a cat\na dog on a hill\n")),
        ("pixart/alpha", Some(4.5), texts),
        ("hunyuan", Some(5.0), texts),
        ("latte", Some(3.0), texts),
        ("stdit/stdit.pth", Some(7.0), texts),
    ] {
        let scratch = Scratch::new(&model.replace('/', "-"));
        let output = scratch.0.join("f32.aqt");
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
        let model = fixtures.join(model);
        // A network alone takes the others from elsewhere.
        let donor = fixtures.join("pixart/alpha");
        let autoencoder = model.is_file().then(|| donor.join("vae"));
        let text = Vec::from_iter(model.is_file().then_some(donor));
        let options = Options {
            model: model.clone(),
            donors: Donors { autoencoder, text, ..Donors::default() },
            q_config: Some("f32".into()),
            output: output.clone(),
            ..Options::default()
        };
        pack(&options, &mut |_| ()).unwrap();
        let packed = Packed::open(&output).unwrap();
        check(&packed, &settings(&scratch, model, guidance, prompts));
    }
}

fn settings(scratch: &Scratch, model: PathBuf, guidance: Option<f32>, prompts: Option<&str>) -> Settings {
    let mut settings = Settings::new(model, scratch.0.join("c.safetensors"));
    settings.sampling = SamplingOptions { steps: Some(4), cfg_scale: guidance, ..SamplingOptions::default() };
    settings.images = 2;
    settings.prompts = prompts.map(|lines| {
        let path = scratch.0.join("prompts.txt");
        fs::write(&path, lines).unwrap();
        path
    });
    settings
}

fn check(packed: &Packed<aquatint::raw::mmap::FileBytes>, settings: &Settings) {
    let what = settings.model.display();
    let model = Model::new(packed).unwrap();
    let cpu = Cpu::best().node_by_node();
    let mut session = Session::new(&model, &cpu);
    let asked = samples::request(settings, &model).unwrap();
    let (prompts, _) = states::encoded(&mut session, &asked).unwrap();
    let request = samples::with(&asked, filled(prompts, &model));
    let states = Calls::run(&mut session, &request, 2, &mut |_| true).unwrap();
    let copies = if request.guidance_scale > 1.0 { 2 } else { 1 };
    let calls = Calls { request: &request, copies, states: &states };
    let program = packed.program(Role::Denoiser).unwrap();
    let weights: BTreeMap<Tensor, Array> = (0..packed.tensors().len())
        .filter(|&i| packed.tensors()[i].kind != TensorKind::Bytes)
        .filter_map(|i| match packed.tensor(i) {
            TensorView::F32(values) => Some((Tensor(i as u32), Array::new(&packed.tensors()[i].dims, values.to_vec()))),
            _ => None,
        })
        .collect();
    // Cut into blocks as if all layers were trained.
    let layers: BTreeSet<Tensor> =
        program.nodes.iter().flat_map(|node| node.op.tensors()).filter(|t| weights[t].dims.len() > 1).collect();
    let segments = segments(program, &layers);
    assert!(segments.iter().any(|segment| segment.nodes.len() > 3), "{what}: blocks");
    let types: Vec<_> = packed.tensors().iter().map(|tensor| tensor.ty()).collect();
    let shapes = Shapes::new(&types, program, &request, request.prompts.tokens(0)).unwrap();
    let all = 2 * 2 * copies;
    let mut values = calls.look(&mut session, program, &segments, &shapes, usize::MAX).unwrap();
    assert_eq!(values.count, all, "{what}");
    let few = calls.look(&mut session, program, &segments, &shapes, all - 1).unwrap();
    assert_eq!(few.count, all - 1, "{what}");
    for segment in &segments {
        let inputs = (&values.values, &values.shared);
        let shared = shapes.is_shared(segment.output);
        let count = if shared { 1 } else { values.count };
        let find = |tensor: Tensor| &weights[&tensor];
        let nodes = (&segment.nodes[..], request.frames);
        let result = block::run(program, nodes, segment.output, inputs, count, &find).unwrap();
        values.values.insert(segment.output, result);
        values.shared.extend(shared.then_some(segment.output));
    }
    let got = &values.values[&program.output];
    // Image after image, of each its calls, of each call its branches.
    let mut at = 0;
    for image in 0..2 {
        for (place, &index) in states.chosen.iter().enumerate() {
            let call = states.calls[index];
            let len = states.samples[place].len() / 2;
            let sample = states.samples[place][image * len..(image + 1) * len].to_vec();
            let images = image..image + 1;
            let call = ModelCall { role: call.role, index, moment: call.moment, images, sample };
            let predicted = session.predict(&request, &call).unwrap();
            let size = predicted.values.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (i, expected) in predicted.values.iter().enumerate() {
                let got = got.values[at + i];
                let near = (got - expected).abs() <= ROUNDINGS * f32::EPSILON * size;
                assert!(near, "{what}, image {image}, call {index}, {i}: {got}, the runtime has {expected}");
            }
            at += predicted.values.len();
        }
    }
    assert_eq!(at, got.values.len(), "{what}");
}
