//! Parts of runs, inpainting and learned variance against diffusers' schedulers, driven as its pipelines drive them.

use aquatint::sampler::{COLUMNS, Config, NOISE, OUTPUT, Row, SamplerKind, Spacing, Span, Start, Table, Variance, X0};
use serde_json::Value;

/// Values per state in the fixture.
const N: usize = 8;

/// Half a unit in the last place of an f32 near 1: what rounding a coefficient costs, relatively.
const HALF_UNIT: f64 = 1.0 / (1 << 24) as f64;

const MASK: [f64; N] = [0.0, 1.0, 0.25, 1.0, 0.0, 0.5, 1.0, 0.0];

/// The entries of two fixtures.
fn entries() -> Vec<Value> {
    let read = |name: &str| {
        let path = format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let mut file: Value = serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).expect(&path);
        file["entries"].as_array_mut().map(std::mem::take).expect("entries")
    };
    ["samplers_ranges", "samplers_parts"].into_iter().flat_map(read).collect()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("an array").iter().map(|v| v.as_f64().expect("a number")).collect()
}

fn span(entry: &Value) -> Span {
    let start = match (entry["strength"].as_f64(), entry["start"].as_f64()) {
        (Some(strength), None) => Start::Strength(strength),
        (None, Some(share)) => Start::Fraction(share),
        _ => Start::Noise,
    };
    Span { start, end: entry["end"].as_f64() }
}

/// Runs the table in f64 with the fixture's formulas: the first latents, and after every call the latents and the
/// largest magnitude of any product of a coefficient and a value up to then.
fn trace(table: &Table, noised: bool, paint: bool) -> (Vec<f64>, Vec<(Vec<f64>, f64)>) {
    let wave = |f: &dyn Fn(f64) -> f64| -> [f64; N] { std::array::from_fn(|j| f(j as f64)) };
    let (clean, kept) = (wave(&|j| (0.6 * j - 0.2).cos()), wave(&|j| (0.8 * j + 1.1).sin()));
    let start = wave(&|j| (0.4 * j + 0.3).sin() * f64::from(table.init_scale));
    let [signal, sigma] = table.rows[0].level.map(f64::from);
    let mut states = vec![0.0; table.states * N];
    for j in 0..N {
        states[j] = if noised { signal * clean[j] + sigma * kept[j] } else { start[j] };
    }
    let first = states[..N].to_vec();
    let mut scale: f64 = 1.0;
    let mut call = |(i, row): (usize, &Row)| {
        let mut input = [0.0; N];
        table.input(i, &states[..N], &mut input);
        let i_ = i as f64;
        let mut output: Vec<f64> = (0..N).map(|j| (0.7 * i_ + 1.3 * j as f64 + 0.5).sin() + 0.1 * input[j]).collect();
        let noise = wave(&|j| (1.1 * i_ + 0.9 * j).cos());
        for j in 0..N {
            let x0 = [states[j] * f64::from(row.x0[0]), output[j] * f64::from(row.x0[1])];
            let x0 = x0.map(|term| term * f64::from(row.next[0][X0]));
            let others = (0..table.states).map(|k| states[k * N + j] * f64::from(row.next[0][k]));
            let others = others.chain(x0).chain([output[j] * f64::from(row.next[0][OUTPUT])]);
            scale = others.fold(scale, |scale, term| scale.max(term.abs()));
        }
        if row.gain.is_some() {
            output.extend(wave(&|j| (0.3 * i_ + 0.7 * j).cos()));
        }
        table.step(i, &mut states, &output, &noise);
        if paint {
            table.blend(i, &mut states[..N], &MASK, &clean, &kept);
            scale = scale.max(f64::from(row.keep[1]));
        }
        scale = states[..N].iter().fold(scale, |scale, x| scale.max(x.abs()));
        (states[..N].to_vec(), scale)
    };
    let rows = table.rows.iter().enumerate().map(&mut call).collect();
    (first, rows)
}

#[test]
fn parts_match_diffusers() {
    // As in samplers.rs: only the rounding of our coefficients to f32 differs, half a unit of each product, of which a
    // call sums up to four; and the exponent of a learned gain is a sum of up to 12 with an error of two half-units of
    // that, 24 of the noise.
    let entries = entries();
    assert!(entries.len() > 300, "only {} entries", entries.len());
    let mut worst: f64 = 0.0;
    for entry in &entries {
        let label = format!(
            "{} {} steps {} strength {} start {} end {} paint {} eta {}",
            entry["class"],
            entry["config"],
            entry["steps"],
            entry["strength"],
            entry["start"],
            entry["end"],
            entry["paint"],
            entry["eta"]
        );
        let mut json = entry["config"].clone();
        json["_class_name"] = entry["class"].clone();
        let mut config = Config::from_diffusers(&json).expect("a supported configuration");
        config.eta = entry["eta"].as_f64().expect("eta") as f32;
        let steps = entry["steps"].as_u64().expect("steps") as usize;
        let table = config.table_range(steps, &span(entry)).expect(&label);

        let wanted = numbers(&entry["timesteps"]);
        let timesteps: Vec<f64> = table.rows.iter().map(|r| r.timestep.into()).collect();
        let close = |(got, want): (&f64, &f64)| (got - want).abs() < if want.fract() == 0.0 { 1e-9 } else { 2e-3 };
        assert_eq!(timesteps.len(), wanted.len(), "{label}: {timesteps:?}, expected {wanted:?}");
        assert!(timesteps.iter().zip(&wanted).all(close), "{label}: timesteps {timesteps:?}, expected {wanted:?}");
        assert_eq!(table.noise, table.rows.iter().any(|r| r.next[0][NOISE] != 0.0), "{label}: noise");

        let paint = entry["paint"] == true;
        let (first, got) = trace(&table, !entry["strength"].is_null(), paint);
        for (got, want) in first.iter().zip(numbers(&entry["first"])) {
            let level = f64::from(table.rows[0].level[1]).max(f64::from(table.init_scale)).max(1.0);
            assert!((got - want).abs() < 2.0 * HALF_UNIT * level, "{label}: begins with {got}, expected {want}");
        }
        let limit = match (entry["class"].as_str(), table.learned()) {
            (_, true) => 24.0 + 8.0,
            (Some("PNDMScheduler"), _) => 12.0,
            _ => 8.0,
        };
        let begin = entry["trace_from"].as_u64().expect("trace_from") as usize;
        for (call, want) in entry["trace"].as_array().expect("trace").iter().enumerate() {
            let (got, scale) = &got[begin + call];
            for (j, (got, want)) in got.iter().zip(numbers(want)).enumerate() {
                let error = (got - want).abs() / scale;
                worst = worst.max(error / limit);
                assert!(
                    error < limit * HALF_UNIT,
                    "{label}\ncall {} value {j}: expected {want}, got {got}",
                    begin + call
                );
            }
        }
        let (last, scale) = &got[got.len() - 1];
        for (got, want) in last.iter().zip(numbers(&entry["final_plain"])) {
            assert!((got - want).abs() / scale < 2e-5, "{label}: final_plain {want}, got {got}");
        }
    }
    println!("worst error {:.2} of the limit over {} entries", worst / HALF_UNIT, entries.len());
}

/// A configuration of each sampler and, if it has a choice, of each spacing.
fn variants() -> Vec<Config> {
    let of = |&kind: &SamplerKind| {
        let kinds = Spacing::ALL
            .iter()
            .filter(move |s| kind == SamplerKind::Ddim || !matches!(s, Spacing::Uniform | Spacing::Quad));
        kinds.map(move |&spacing| Config {
            kind,
            spacing: Some(spacing),
            clip_sample: Some(false),
            ..Config::default()
        })
    };
    SamplerKind::ALL.iter().flat_map(of).collect()
}

#[test]
fn parts_are_rows_of_the_whole() {
    // What looks back is the first rows of a part; later ones, and all of samplers that do not, are the whole run's.
    for config in variants() {
        for (steps, begin) in [(9, 0), (9, 1), (9, 5), (9, 8), (40, 21), (7, 3)] {
            let whole = config.table(steps).expect("a table");
            let all = whole.rows.len();
            let strength = (steps - begin) as f64 / steps as f64 + 1e-9;
            let strength = strength.min(1.0);
            let part =
                config.table_range(steps, &Span { start: Start::Strength(strength), end: None }).expect("a part");
            let calls = match (config.kind, config.spacing) {
                (kind, _) if kind.calls_twice() => 2 * (steps - begin) - 1,
                (_, Some(Spacing::Uniform)) if begin > 0 => steps - begin,
                _ => all - begin,
            };
            assert_eq!(part.rows.len(), calls, "{config:?} {steps} steps from {begin}");
            let settled = match config.kind {
                // The first call is where the whole run's last of that level is, so that all are one off.
                SamplerKind::Pndm => usize::MAX,
                SamplerKind::Lms => 3,
                SamplerKind::DpmSolverPp3M | SamplerKind::DpmSolverPp3MSde => 3,
                SamplerKind::UniPc
                | SamplerKind::Deis
                | SamplerKind::DpmSolverPp2M
                | SamplerKind::DpmSolverPp2MSde
                | SamplerKind::DpmSolverPp2S => 2,
                _ => 0,
            };
            for (row, whole) in part.rows.iter().zip(&whole.rows[all - calls..]).skip(settled) {
                assert_eq!(row, whole, "{config:?} {steps} steps from {begin}");
            }
            let levels = part.rows.windows(2).all(|w| w[0].keep == w[1].level);
            assert!(levels && part.rows[calls - 1].keep == [1.0, 0.0], "{config:?}: the last keeps clean latents");
            assert_eq!((part.states, part.init_scale), (whole.states, whole.init_scale), "{config:?}");
        }
    }
}

#[test]
fn parts_are_exact_for_a_perfect_model() {
    // A model that always sees the same clean value ends there from wherever the run begins. Not so for two samplers
    // whose first steps in a part are diffusers', and not of the width they should be, nor for two that end at some noise.
    let target = -0.625;
    for config in variants()
        .into_iter()
        .filter(|c| !matches!(c.kind, SamplerKind::Lms | SamplerKind::Pndm | SamplerKind::Deis | SamplerKind::Tcd))
    {
        for strength in [0.1, 0.35, 0.5, 0.99] {
            let table = config.table_range(20, &Span { start: Start::Strength(strength), end: None }).expect("a part");
            let [signal, sigma] = table.rows[0].level.map(f64::from);
            let mut states = vec![f64::NAN; table.states];
            states[0] = signal * target + sigma * 1.75;
            for (call, row) in table.rows.iter().enumerate() {
                let x0 = row.x0.map(f64::from);
                let output = (target - x0[0] * states[0]) / x0[1];
                table.step(call, &mut states, &[output], &[0.3]);
            }
            // As for whole runs, but LCM's last jump keeps 0.25 / T^2 of the latents, with T of 190 at least.
            let limit = if config.kind == SamplerKind::Lcm { 2e-5 } else { 2.0 * 157.0 * HALF_UNIT };
            assert!((states[0] - target).abs() < limit, "{config:?} strength {strength}: {}", states[0]);
        }
    }
}

#[test]
fn noise_is_that_of_the_first_call() {
    // Clean latents with noise at the level of any call, read by its own row with that noise as the model's output,
    // are clean again.
    for config in variants() {
        for row in &config.table(9).expect("a table").rows {
            let ([signal, sigma], [a, b]) = (row.level.map(f64::from), row.x0.map(f64::from));
            let (clean, noise) = (0.7, -1.9);
            let x0 = a * (signal * clean + sigma * noise) + b * noise;
            // Three products, of up to 157 times 1.9 where alpha is small, each of factors rounded once or twice.
            let limit = 6.0 * HALF_UNIT * (a * sigma * noise).abs().max(1.0);
            assert!((x0 - clean).abs() < limit, "{config:?} timestep {}: {x0}", row.timestep);
        }
    }
}

#[test]
fn a_mask_keeps_what_it_should() {
    let table = Config::default().with_kind(SamplerKind::Euler).table(3).expect("a table");
    let sigma = table.rows[1].level[1];
    let mut latents = [1.0f32, 2.0, 3.0];
    table.blend(0, &mut latents, &[1.0, 0.0, 0.5], &[5.0; 3], &[-1.0, 1.0, 2.0]);
    assert_eq!(latents, [1.0, 5.0 + sigma, 0.5 * (5.0 + sigma * 2.0) + 1.5]);
    table.blend(2, &mut latents, &[0.0; 3], &[5.0, 6.0, 7.0], &[9.0; 3]);
    assert_eq!(latents, [5.0, 6.0, 7.0], "after the last call the picture is as it was");
}

#[test]
fn parts_that_cannot_be_say_so() {
    let refused = |config: &Config, start: Start, end: Option<f64>| {
        config.table_range(10, &Span { start, end }).expect_err("refused").to_string()
    };
    let ddim = Config::default();
    for (start, end, words) in [
        (Start::Strength(1.5), None, "strength"),
        (Start::Strength(-0.1), None, "strength"),
        (Start::Strength(f64::NAN), None, "strength"),
        (Start::Strength(0.05), None, "falls into what strength 0.05 makes anew, got 10"),
        (Start::Fraction(1.0), None, "denoising start"),
        (Start::Fraction(0.9995), None, "falls after 0.9995 of the run"),
        (Start::Noise, Some(0.0), "denoising end"),
        (Start::Noise, Some(1.5), "denoising end"),
        (Start::Fraction(0.5), Some(0.5), "more than the start, 0.5"),
        (Start::Strength(0.1), Some(0.5), "into what strength 0.1 makes anew before 0.5 of the run"),
        (Start::Noise, Some(0.01), "falls before 0.01 of the run, got 10"),
    ] {
        let text = refused(&ddim, start, end);
        assert!(text.contains(words), "{start:?} {end:?}: {text}");
    }
    let whole = ddim.table_range(10, &Span { start: Start::Fraction(0.0), end: Some(1.0) });
    assert_eq!(whole.expect("all of it"), ddim.table(10).expect("a table"));
}

#[test]
fn learned_noise_lies_between_the_fixed_ones() {
    let of = |variance| {
        Config { kind: SamplerKind::Ddpm, variance: Some(variance), ..Config::default() }.table(20).expect("a table")
    };
    let (small, large, learned) = (of(Variance::FixedSmall), of(Variance::FixedLarge), of(Variance::LearnedRange));
    for ((small, large), learned) in small.rows.iter().zip(&large.rows).zip(&learned.rows) {
        let [base, slope] = learned.gain.expect("a gain");
        let noise = |v: f32| learned.next[0][NOISE] * (base + slope * v).exp();
        // An exponent of up to 12 whose rounding is 2^-21 at most.
        let close = |got: f32, want: f32| (got - want).abs() <= 2e-6 * want.abs();
        if learned.timestep > 0.0 {
            assert!(close(noise(-1.0), small.next[0][NOISE]) && close(noise(1.0), large.next[0][NOISE]));
        }
        assert_eq!(learned.encode()[6..8], [base, slope]);
        assert_eq!(learned.next[0][..COLUMNS - 1], small.next[0][..COLUMNS - 1]);
    }
}

/// Curves over the share of steps must not begin again in image to image, or where a refiner takes over.
#[test]
fn a_part_knows_its_place_in_the_whole_run() {
    for &kind in SamplerKind::ALL {
        let config = Config::default().with_kind(kind);
        let fractions = |span: &Span| -> Vec<f32> {
            config.table_range(10, span).unwrap().rows.iter().map(|row| row.fraction).collect()
        };
        let whole = fractions(&Span::default());
        let place = |i: usize| i as f32 / whole.len() as f32;
        assert_eq!(whole, (0..whole.len()).map(place).collect::<Vec<_>>(), "{kind}");
        let beginning = fractions(&Span { start: Start::Noise, end: Some(0.7) });
        assert_eq!(beginning, whole[..beginning.len()], "{kind}");
        for start in [Start::Strength(0.4), Start::Fraction(0.7)] {
            let part = fractions(&Span { start, end: None });
            assert!(part.len() < whole.len() && part[0] > 0.3, "{kind} {start:?}: {part:?}");
            assert_eq!(part, whole[whole.len() - part.len()..], "{kind} {start:?}");
        }
    }
}
