//! Every sampler in a whole run against its table applied by hand around single calls of the denoiser: the number of
//! calls, the initial scale, the model's input, the states and the noise of each call.

use aquatint::pipeline::{Event, NoiseSource, Plans, Prompts, Request, Session, swap_last_axes};
use aquatint::raw::backend::args::Element;
use aquatint::raw::backend::cpu::{Cpu, Tier};
use aquatint::raw::backend::cuda::CudaSizing;
use aquatint::raw::format::Packed;
use aquatint::raw::rng::TorchRng;
use aquatint::sampler::SamplerKind;
use std::path::Path;

fn packed() -> Packed<aquatint::raw::mmap::FileBytes> {
    let output = std::env::temp_dir().join(format!(
        "aquatint-samplers-{}-{:?}.aqt",
        std::process::id(),
        std::thread::current().id()
    ));
    let options = packer::emit::Options {
        model: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dit/d2"),
        q_config: Some("f32".into()),
        vae_q_config: Some("f32".into()),
        output: output.clone(),
        ..Default::default()
    };
    packer::emit::pack(&options, &mut |_| ()).expect("the fixture packs");
    let map = aquatint::raw::mmap::open(&output).expect("the packed file maps");
    std::fs::remove_file(&output).expect("a mapped file can be unlinked");
    Packed::new(map).expect("the packed file opens")
}

#[test]
fn runs_do_as_their_tables_say() {
    let packed = packed();
    let model = aquatint::model::Model::new(&packed).expect("a model");
    let tier = Tier::available()[0];
    let labels = [3];
    let plain = SamplerKind::ALL.iter().map(|kind| kind.name()).chain(["iddpm", "heun-karras"]);
    for (kind, thresholding) in plain.map(|kind| (kind, false)).chain([("ddim", true), ("dpm++2m", true)]) {
        let mut request = Request::new(&model, Prompts::Classes(labels.to_vec()));
        request.sampler = request.sampler.named(kind).expect("a name");
        (request.sampler.thresholding, request.sampler.dynamic_thresholding_ratio) = (thresholding, Some(0.5));
        request.sampler.sample_max_value = Some(2.0);
        (request.steps, request.guidance_scale, request.noise) = (6, 1.0, NoiseSource::Torch);
        let [h, w] = request.latent_size;
        let channels = model.latents.channels;
        let n = channels * h * w;
        let mut init = vec![0.0; n];
        TorchRng::new(7).randn(&mut init);
        request.latents = Some(init.clone());

        let table = request.sampler.table(request.steps).expect("a table");
        let mut rng = TorchRng::new(request.seed);
        let mut states = vec![0.0; table.states * n];
        states[..n].iter_mut().zip(&init).for_each(|(to, x)| *to = x * table.init_scale);
        let (mut input, mut noise) = (vec![0.0; n], vec![0.0; n]);
        for (call, row) in table.rows.iter().enumerate() {
            table.input(call, &states[..n], &mut input);
            let eval = {
                let cpu = Cpu::new(tier);
                Session::new(&model, &cpu).eval(&input, [h, w], Prompts::Classes(labels.to_vec()), row.timestep)
            };
            let output = eval.expect("it runs").0;
            if row.noise() {
                rng.randn(&mut noise);
            }
            let outputs = if table.learned() { 2 * n } else { n };
            table.step(call, &mut states, &output[..outputs], &noise);
        }

        let mut calls = 0;
        let got = {
            let cpu = Cpu::new(tier);
            Session::new(&model, &cpu).job(request.clone()).unwrap().denoise(|_, event| {
                calls += usize::from(matches!(event, Event::Step { .. }));
            })
        };
        let got = swap_last_axes(&got.expect("it runs"), [1, h * w, channels]);
        assert_eq!(calls, table.rows.len(), "{kind}");
        let size = states[..n].iter().fold(0.0f32, |size, x| size.max(x.abs()));
        for (got, want) in got.iter().zip(&states) {
            // The same f32 arithmetic, but for the order of sums.
            assert!((got - want).abs() <= 1e-5 * size, "{kind}: {got} for {want}, of at most {size}");
        }
    }
}

#[test]
fn thresholds_are_refused_where_a_back_end_has_none() {
    let packed = packed();
    let model = aquatint::model::Model::new(&packed).expect("a model");
    let mut request = Request::new(&model, Prompts::Classes(vec![3]));
    let cuda = CudaSizing { narrow: Element::F16 };
    assert!(Plans::new(&cuda, &model, &request).is_ok());
    request.sampler.thresholding = true;
    let text = Plans::new(&cuda, &model, &request).map(|_| ()).expect_err("refused").to_string();
    assert!(text.contains("thresholding") && text.contains("--device cpu"), "{text}");
    assert!(Plans::new(&Cpu::new(Tier::available()[0]), &model, &request).is_ok());
}
