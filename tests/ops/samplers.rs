//! Sampler tables against whole traces of diffusers' schedulers, and their properties.

use aquatint::sampler::{
    BetaSchedule, Config, FinalSigma, NOISE, OUTPUT, Prediction, Row, SamplerKind, SolverType, Spacing, Table, X0,
};
use serde_json::Value;

/// Values per state in the fixture.
const N: usize = 8;

/// Half a unit in the last place of an f32 near 1: what rounding a coefficient costs, relatively.
const HALF_UNIT: f64 = 1.0 / (1 << 24) as f64;

/// The entries of two fixtures.
fn entries() -> Vec<Value> {
    let read = |name: &str| {
        let path = format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let mut file: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).expect(&path);
        file["entries"].as_array_mut().map(std::mem::take).expect("entries")
    };
    ["samplers", "samplers_schedules"].into_iter().flat_map(read).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("an array").iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// A fixture entry's configuration, as its `scheduler_config.json` would have it.
fn config(entry: &Value) -> Config {
    let mut json = entry["config"].clone();
    json["_class_name"] = entry["class"].clone();
    let mut config = Config::from_diffusers(&json).expect("a supported configuration");
    config.eta = entry["eta"].as_f64().expect("eta") as f32;
    config
}

/// Runs the table in f64 with the fixture's formulas: after every call the latents, and the largest magnitude of any
/// product of a coefficient and a value up to then.
fn trace(table: &Table) -> Vec<(Vec<f64>, f64)> {
    let mut states = vec![0.0; table.states * N];
    for (j, x) in states[..N].iter_mut().enumerate() {
        *x = (0.4 * j as f64 + 0.3).sin() * f64::from(table.init_scale);
    }
    let mut input = [0.0; N];
    let mut scale: f64 = 1.0;
    let mut call = |i: usize| {
        table.input(i, &states[..N], &mut input);
        let wave = |j: usize| (0.7 * i as f64 + 1.3 * j as f64 + 0.5).sin() + 0.1 * input[j];
        let output: [f64; N] = std::array::from_fn(wave);
        let noise: [f64; N] = std::array::from_fn(|j| (1.1 * i as f64 + 0.9 * j as f64).cos());
        let row = &table.rows[i];
        for j in 0..N {
            let terms = [states[j] * f64::from(row.x0[0]), output[j] * f64::from(row.x0[1])];
            scale = terms.iter().fold(scale, |scale, term| scale.max(term.abs() * f64::from(row.next[0][X0]).abs()));
            let others = (0..table.states).map(|k| states[k * N + j] * f64::from(row.next[0][k]));
            let others = others.chain([output[j] * f64::from(row.next[0][OUTPUT])]);
            scale = others.fold(scale, |scale, term| scale.max(term.abs()));
        }
        table.step(i, &mut states, &output, &noise);
        scale = states[..N].iter().fold(scale, |scale, x| scale.max(x.abs()));
        (states[..N].to_vec(), scale)
    };
    (0..table.rows.len()).map(&mut call).collect()
}

#[test]
fn traces_match_diffusers() {
    // The fixture's trace is diffusers' own formulas in f64 on its f32 schedule, so all that can differ is the rounding
    // of our coefficients to f32: 2^-24 of each product, of which a call sums up to four. The errors of the calls
    // add up a little: four half-units of the largest product hold for 50 calls, seven for 999. The weights of PLMS
    // add up to 160/24 in place of 1: eight for 50 calls.
    let entries = entries();
    assert!(entries.len() > 700, "only {} entries", entries.len());
    let mut worst: f64 = 0.0;
    for entry in &entries {
        let label = format!("{} {} steps {} eta {}", entry["class"], entry["config"], entry["steps"], entry["eta"]);
        let steps = entry["steps"].as_u64().expect("steps") as usize;
        let table = config(entry).table(steps).expect(&label);
        assert_eq!(table.init_scale, entry["init_noise_sigma"].as_f64().unwrap() as f32, "{label}");
        let timesteps: Vec<f64> = table.rows.iter().map(|r| r.timestep.into()).collect();
        let between = config(entry).kind.calls_twice();
        let close = |(got, want): (&f64, &f64)| match want.fract() == 0.0 && !between {
            true => got == want,
            // An interpolation among f32 logarithms, whose differences are a few thousandths.
            false => (got - want).abs() < 2e-3,
        };
        let wanted = numbers(&entry["timesteps"]);
        assert_eq!(timesteps.len(), wanted.len(), "{label}: calls");
        assert!(timesteps.iter().zip(&wanted).all(close), "{label}: timesteps {timesteps:?}, expected {wanted:?}");
        if entry["class"] == "DDIMScheduler" {
            assert_eq!(table.noise, entry["eta"] != 0.0 && steps > 1, "{label}: noise");
        }

        let got = trace(&table);
        let limit = if entry["class"] == "PNDMScheduler" { 12.0 } else { 8.0 };
        let first = entry["trace_from"].as_u64().expect("trace_from") as usize;
        let want = entry["trace"].as_array().expect("trace");
        assert_eq!(got.len(), first + want.len(), "{label}: calls");
        for (call, (got, scale)) in got.iter().enumerate() {
            let Some(want) = call.checked_sub(first).map(|r| numbers(&want[r])) else { continue };
            for (j, (got, want)) in got.iter().zip(&want).enumerate() {
                let error = (got - want).abs() / scale;
                worst = worst.max(error);
                assert!(
                    error < limit * HALF_UNIT,
                    "{label}\ncall {call} value {j}: expected {want}, got {got}, scale {scale}"
                );
            }
        }
        // diffusers as it runs, its coefficients in f32: the logarithms in DPM-Solver++ cancel to about 1e-5.
        let (last, scale) = &got[got.len() - 1];
        for (got, want) in last.iter().zip(numbers(&entry["final_plain"])) {
            assert!((got - want).abs() / scale < 2e-5, "{label}: final_plain {want}, got {got}");
        }
    }
    println!("worst error {:.2} half-units over {} entries", worst / HALF_UNIT, entries.len());
}

/// Every sampler, spacing and prediction that ends at no noise.
fn variants() -> Vec<Config> {
    let mut all = vec![];
    for &kind in SamplerKind::ALL {
        for &spacing in Spacing::ALL {
            for &prediction in Prediction::ALL {
                if kind != SamplerKind::Ddim && matches!(spacing, Spacing::Uniform | Spacing::Quad)
                    || matches!(kind, SamplerKind::Pndm | SamplerKind::EulerAncestral)
                        && prediction == Prediction::Sample
                {
                    continue;
                }
                let (spacing, clip_sample, set_alpha_to_one) = (Some(spacing), Some(false), Some(true));
                let plain = Config { kind, spacing, prediction, clip_sample, set_alpha_to_one, ..Config::default() };
                all.push(Config { solver_type: SolverType::Heun, eta: 0.5, ..plain.clone() });
                all.push(Config { use_karras_sigmas: true, clip_sample: None, ..plain.clone() });
                all.push(Config { use_exponential_sigmas: true, ..plain.clone() });
                all.push(Config { solver_order: 1, beta_schedule: BetaSchedule::ScaledLinear, ..plain.clone() });
                all.push(plain);
            }
        }
    }
    all
}

/// Most steps of a sampler.
fn most_steps(config: &Config) -> usize {
    if matches!(config.kind, SamplerKind::Lcm | SamplerKind::Tcd) { 50 } else { config.train_steps }
}

#[test]
fn perfect_model_is_sampled_exactly() {
    // A model that always sees the same clean value: whatever the sampler, the run must end there.
    let target = -0.625;
    let mut worst: f64 = 0.0;
    let exact = |c: &Config| match c.kind {
        // PLMS takes means of outputs before it knows what they mean, so velocities of different times do not agree; and
        // its steps meet their timesteps in the leading spacing only.
        SamplerKind::Pndm => c.prediction == Prediction::Epsilon && c.spacing == Some(Spacing::Leading),
        // These two end at the noise of training step 0.
        SamplerKind::Deis | SamplerKind::Tcd => false,
        _ => true,
    };
    for config in variants().into_iter().filter(exact) {
        for steps in [1, 2, 3, 20, 100].into_iter().filter(|&n| n <= most_steps(&config)) {
            let table = config.table(steps).expect("a table");
            let mut states = vec![0.0; table.states];
            states[0] = 1.75 * f64::from(table.init_scale);
            for (call, row) in table.rows.iter().enumerate() {
                let x0 = row.x0.map(f64::from);
                let output = (target - x0[0] * states[0]) / x0[1];
                table.step(call, &mut states, &[output], &[0.3]);
            }
            let limit = match config.kind {
                // Its last jump keeps 0.25 / T^2 of the latents, where T is at least 190.
                SamplerKind::Lcm => 2e-5,
                // The noise that this model implies at timestep 0, where sigma is 0.01, steers a whole step.
                SamplerKind::Pndm => 1000.0 * HALF_UNIT,
                // What is left of the first latents, which are 157 at most, cancels.
                SamplerKind::Lms | SamplerKind::UniPc => 2.0 * 157.0 * HALF_UNIT,
                kind if kind.calls_twice() => 2.0 * 157.0 * HALF_UNIT,
                _ => 2.0 * HALF_UNIT,
            };
            let error = (states[0] - target).abs();
            worst = worst.max(error / limit);
            assert!(error < limit, "{config:?} {steps} steps: {}", states[0]);
        }
    }
    println!("worst error {worst:.2} of the limit");
}

#[test]
fn deterministic_steps_keep_the_noise() {
    // With a perfect model a deterministic sampler follows x = alpha x0 + sigma e with one e for the whole run; alpha
    // and sigma at a call are read off its own x0 row.
    let (target, noise) = (0.4, -1.3);
    for kind in SamplerKind::ALL {
        let config = Config { kind: *kind, clip_sample: Some(false), ..Config::default() };
        let table = config.table(25).expect("a table");
        if table.noise {
            continue;
        }
        let level = |call: usize| {
            let x0 = table.rows[call].x0.map(f64::from);
            (1.0 / x0[0], -x0[1] / x0[0])
        };
        let on_path = |call| level(call).0 * target + level(call).1 * noise;
        let mut states = vec![0.0; table.states];
        states[0] = on_path(0);
        for call in 0..table.rows.len() - 1 {
            table.step(call, &mut states, &[noise], &[]);
            let want = on_path(call + 1);
            // Up to four rounded products of magnitude below 2, or of that of the latents, in each call so far; a wrong
            // formula is off by 1e-3 of it.
            let limit = 8.0 * HALF_UNIT * (call + 1) as f64 * on_path(0).abs().max(1.0);
            assert!((states[0] - want).abs() < limit, "{kind} call {call}: {} for {want}", states[0]);
        }
    }
}

#[test]
fn rows_are_as_many_as_steps_and_go_down() {
    for config in variants().iter().filter(|c| c.prediction == Prediction::Epsilon) {
        let counts = (1..40).chain([61, 103, 250, 333, 499, 500, 501, 998]);
        for steps in counts.filter(|&n| n <= most_steps(config)) {
            let table = config.table(steps).unwrap_or_else(|e| panic!("{config:?} {steps} steps: {e}"));
            let calls = match (config.kind, config.spacing) {
                (SamplerKind::Pndm, _) if steps > 1 => steps + 1,
                (kind, _) if kind.calls_twice() => 2 * steps - 1,
                (_, Some(Spacing::Uniform)) => 1000usize.div_ceil(1000 / steps),
                _ => steps,
            };
            assert_eq!(table.rows.len(), calls, "{config:?}");
            let repeats = config.use_karras_sigmas
                || config.use_exponential_sigmas
                || config.spacing == Some(Spacing::Quad)
                || config.kind == SamplerKind::Pndm
                || config.kind.calls_twice();
            // diffusers rounds the timesteps of DPM2, but not those between; and the level between of an ancestral step is
            // the next one, but for the interpolation of timesteps.
            let slack = match config.kind {
                SamplerKind::Dpm2 | SamplerKind::Dpm2Ancestral if config.use_karras_sigmas => 0.5,
                SamplerKind::Dpm2Ancestral => 2e-3,
                _ => 0.0,
            };
            let falls = |w: &[Row]| {
                let [before, after] = [w[0].timestep + slack, w[1].timestep];
                before > after || (repeats && before == after)
            };
            assert!(table.rows.windows(2).all(falls), "{config:?} {steps} steps");
            let finite = |row: &Row| row.next.iter().flatten().chain(&row.x0).all(|c| c.is_finite());
            assert!(table.rows.iter().all(finite), "{config:?} {steps} steps");
        }
    }
}

#[test]
fn states_are_set_before_they_are_read() {
    for config in variants() {
        let table = config.table(9).expect("a table");
        let mut states = vec![f64::NAN; table.states];
        states[0] = 1.0;
        for call in 0..table.rows.len() {
            table.step(call, &mut states, &[0.5], &[0.3]);
            assert!(states[0].is_finite(), "{config:?} call {call}");
        }
    }
}

#[test]
fn degenerate_steps_stay_finite() {
    let finite = |config: &Config, steps: usize| {
        let table = config.table(steps).unwrap_or_else(|e| panic!("{config:?} {steps} steps: {e}"));
        let ok = |row: &Row| row.next.iter().flatten().chain(&row.x0).all(|c| c.is_finite());
        assert!(table.rows.iter().all(ok), "{config:?} {steps} steps");
    };
    // The last step of Karras' levels to sigma_min has no width.
    for &solver_type in SolverType::ALL {
        let (use_karras_sigmas, final_sigma) = (true, FinalSigma::SigmaMin);
        for kind in SamplerKind::ALL.iter().copied().filter(|&k| !matches!(k, SamplerKind::Lcm | SamplerKind::Tcd)) {
            let last = Config { kind, solver_type, use_karras_sigmas, final_sigma, ..Config::default() };
            let exponential = Config { use_karras_sigmas: false, use_exponential_sigmas: true, ..last.clone() };
            for steps in [1, 2, 14, 15, 30, 1000] {
                for config in [&last, &exponential] {
                    finite(&Config { lower_order_final: false, ..config.clone() }, steps);
                    finite(config, steps);
                }
            }
        }
    }
    // Ancestral DDIM takes a root of what the noise leaves over.
    for set_alpha_to_one in [false, true] {
        let ancestral = Config { eta: 1.0, set_alpha_to_one: Some(set_alpha_to_one), ..Config::default() };
        (1..=1000).step_by(9).for_each(|steps| finite(&ancestral, steps));
    }
}

#[test]
fn noise_only_where_asked() {
    let eta = |eta| Config { eta, ..Config::default() }.table(10).expect("a table");
    assert!(!eta(0.0).noise);
    assert!(eta(1.0).noise);
    assert_eq!(eta(1.0).rows[9].next[0][NOISE], 0.0, "the last step ends at no noise");
    // eta = 1 is ancestral sampling: the noise takes all of the variance that the signal leaves, near the clean end.
    assert!(eta(1.0).rows[8].next[0][NOISE] > eta(0.5).rows[8].next[0][NOISE]);
    let karras = Config { kind: SamplerKind::DpmSolverPp2M, eta: 1.0, ..Config::default() };
    assert!(!karras.table(10).expect("a table").noise, "eta is DDIM's and TCD's");
}

#[test]
fn one_row_by_hand() {
    let mut table = Config { clip_sample_range: 0.5, ..Config::default() }.table(1).expect("a table");
    table.states = 2;
    let row = &mut table.rows[0];
    row.x0 = [2.0, -1.0];
    row.next = Default::default();
    row.next[0][0] = 0.25;
    row.next[0][1] = 4.0;
    row.next[0][OUTPUT] = 3.0;
    row.next[0][X0] = 10.0;
    row.next[0][NOISE] = -1.0;
    row.next[1][X0] = 1.0;
    // x = (1, -1, 0.25): x0 = 2x - m = (1.5, -2.25, 0.25), clamped to (0.5, -0.5, 0.25).
    let mut states = [1.0f32, -1.0, 0.25, 0.5, 0.0, 1.0];
    table.step(0, &mut states, &[0.5, 0.25, 0.25], &[1.0, 2.0, 3.0]);
    assert_eq!(
        states,
        [0.25 + 2.0 + 1.5 + 5.0 - 1.0, -0.25 + 0.75 - 5.0 - 2.0, 0.0625 + 4.0 + 0.75 + 2.5 - 3.0, 0.5, -0.5, 0.25]
    );

    let mut nan = [f32::NAN, 0.0];
    table.step(0, &mut nan, &[0.0], &[0.0]);
    assert!(nan[0].is_nan() && nan[1].is_nan(), "a clamp must not hide NaN");
    let mut first = Config { kind: SamplerKind::DpmSolverPp2M, ..Config::default() }.table(4).expect("a table");
    first.rows.truncate(1);
    let mut unread = [0.5f32, f32::NAN];
    first.step(0, &mut unread, &[0.1], &[]);
    assert!(unread[0].is_finite(), "the first call has no call before it");
}
