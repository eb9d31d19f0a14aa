//! Norms, elementwise ops, quantization, embeddings and layouts.

use super::*;
use aquatint::raw::program::{
    Add, Concat, Embedding, GroupNorm, LayerNorm, Multiply, PadRows, Parameter, Patchify, PositionEmbedding,
    RangeCurve, RelativeBias, Resample, Rotary, Round, Slice, TimestepEmbedding, Turn, Unpatchify,
};

fn layer_norm(
    x: Value,
    weight: Option<Tensor>,
    eps: f32,
    modulation: Option<Modulation>,
    q: Option<QuantizeSpec>,
) -> Op {
    Op::LayerNorm(LayerNorm { x, weight, bias: weight, eps, modulation, quantize: q, ..LayerNorm::default() })
}

#[test]
fn layer_norm_keeps_the_shape() {
    accept(&[layer_norm(SAMPLE, None, 0.0, None, None)], &[2, 6, 10, 8], Kind::Float);
    accept(&[layer_norm(SAMPLE, Some(V8), 1e-6, None, Some(ROW8))], &[2, 6, 10, 8], Kind::Codes(ROW8));
    let modulation = Some(Modulation { value: TABLE, scale: 0, shift: 1 });
    accept(&[layer_norm(SAMPLE, None, 1e-6, modulation, None)], &[2, 6, 10, 8], Kind::Float);
}

#[test]
fn layer_norm_refuses() {
    refuse(&[layer_norm(LABELS, None, 0.0, None, None)], "x: expected float elements, got Index");
    refuse(&[layer_norm(SAMPLE, Some(V5), 0.0, None, None)], "weight: expected f32 [8], got ([5], \"f32\")");
    let bias = Some(HALF_V8);
    let norm =
        Op::LayerNorm(LayerNorm { x: SAMPLE, weight: None, bias, eps: 0.0, modulation: None, ..LayerNorm::default() });
    refuse(&[norm], "bias: expected f32 [8], got ([8], \"not f32\")");
    for (eps, got) in [(-1.0, "-1.0"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let message = format!("eps: expected a finite number, not negative, got {got}");
        refuse(&[layer_norm(SAMPLE, None, eps, None, None)], &message);
    }
    let modulated = |value, scale, shift| layer_norm(SAMPLE, None, 0.0, Some(Modulation { value, scale, shift }), None);
    refuse(&[modulated(TABLE, 2, 0)], "scale: expected (3 conditions, at least 10), got [3, 9]");
    refuse(&[modulated(TABLE, 0, 2)], "shift: expected (3 conditions, at least 10), got [3, 9]");
    refuse(&[modulated(SAMPLE, 0, 0)], "scale: expected (3 conditions, at least 8), got [2, 6, 10, 8]");
    let per_condition = layer_norm(TABLE, None, 0.0, Some(Modulation { value: TABLE, scale: 0, shift: 0 }), None);
    refuse(&[per_condition], "scale: expected a result for each of the 2 samples, got [3, 9]");
    let nine = spec(9, QuantizeGrain::Row, QuantizeRange::Dynamic);
    refuse(&[layer_norm(SAMPLE, None, 0.0, None, Some(nine))], "quantize bits: expected 2 to 8, got 9");
    let message = format!("quantize grain: expected one scale per row, got {:?}", Some(SAMPLE6));
    refuse(&[layer_norm(SAMPLE, None, 0.0, None, Some(SAMPLE6))], &message);
}

#[test]
fn a_norm_without_means_has_no_bias() {
    let norm = |weight, bias| Op::LayerNorm(LayerNorm { x: SAMPLE, weight, bias, rms: true, ..LayerNorm::default() });
    accept(&[norm(Some(V8), None)], &[2, 6, 10, 8], Kind::Float);
    accept(&[norm(None, None)], &[2, 6, 10, 8], Kind::Float);
    refuse(&[norm(Some(V8), Some(V8))], "bias: expected none in a norm without means, got 0");
}

#[test]
fn products_are_of_equal_shapes() {
    let multiply = |a, b| Op::Multiply(Multiply { a, b });
    accept(&[multiply(SAMPLE, SAMPLE)], &[2, 6, 10, 8], Kind::Float);
    refuse(&[linear(SAMPLE, W), multiply(SAMPLE, LAST)], "b: expected the axes of a, [2, 6, 10, 8], got [2, 6, 10, 5]");
    // As many elements are not enough.
    let patches = Op::Patchify(Patchify { x: SAMPLE, patch: 2 });
    refuse(&[patches, multiply(LAST, SAMPLE)], "b: expected the axes of a, [2, 3, 5, 32], got [2, 6, 10, 8]");
    refuse(&[multiply(LABELS, SAMPLE)], "a: expected float elements, got Index");
    refuse(&[multiply(SAMPLE, NO_VALUE)], "b: expected a value below 4, got 99");
}

#[test]
fn biases_by_distance_are_of_tokens() {
    let bias = |x, table, buckets, max_distance| Op::RelativeBias(RelativeBias { x, table, buckets, max_distance });
    let rows = |x| Op::Slice(Slice { x, first: 0, count: 8, tokens: false });
    refuse(
        &[bias(SAMPLE, CODEBOOK, 4, 9)],
        "x: expected (n, t) tokens or (n, t, d) features, got ([2, 6, 10, 8], Float)",
    );
    refuse(&[bias(TABLE, CODEBOOK, 4, 9)], "x: expected (n, t) tokens or (n, t, d) features, got ([3, 9], Float)");
    refuse(&[bias(LABELS, CODEBOOK, 4, 9)], "x: expected (n, t) tokens or (n, t, d) features, got ([3], Index)");
    let tokens = Op::Parameter(Parameter { tensor: CUBE, ..Parameter::default() });
    accept(&[tokens, bias(LAST, CODEBOOK, 4, 9)], &[8, 2, 2], Kind::Float);
    refuse(&[tokens, bias(LAST, CODEBOOK, 8, 9)], "table: expected f16 or f32 [8 buckets, heads], got [4, 8]");
    refuse(&[tokens, bias(LAST, W, 5, 9)], "buckets: expected a multiple of 4 up to 64, got 5");
    refuse(&[tokens, bias(LAST, MANY, MUCH, 9)], "buckets: expected a multiple of 4 up to 64, got 2147483648");
    refuse(&[tokens, bias(LAST, CODEBOOK, 4, 1)], "max distance: expected 2 to 2^24, got 1");
    refuse(&[tokens, bias(LAST, CODEBOOK, 4, u32::MAX)], "max distance: expected 2 to 2^24, got 4294967295");
    refuse(&[tokens, bias(LAST, V8, 8, 9)], "table: expected f16 or f32 [8 buckets, heads], got [8]");
    refuse(&[tokens, bias(LAST, W_CODES, 5, 9)], "table: expected f16 or f32 [5 buckets, heads], got [5, 8]");
    refuse(&[rows(TABLE), bias(NO_VALUE, CODEBOOK, 4, 9)], "x: expected a value below 5, got 99");
}

#[test]
fn group_norm_divides_channels_evenly() {
    let norm = |x, weight, bias, groups, eps, quantize| {
        Op::GroupNorm(GroupNorm { x, weight, bias, groups, eps, modulation: None, act: Act::Silu, quantize })
    };
    accept(&[norm(SAMPLE, V8, V8, 4, 1e-6, None)], &[2, 6, 10, 8], Kind::Float);
    accept(&[norm(SAMPLE, V8, V8, 1, 1e-6, Some(SAMPLE6))], &[2, 6, 10, 8], Kind::Codes(SAMPLE6));
    refuse(&[norm(NO_VALUE, V8, V8, 4, 0.0, None)], "x: expected a value below 4, got 99");
    refuse(&[norm(TABLE, V8, V8, 4, 0.0, None)], "x: expected (n, h, w, c), got [3, 9]");
    refuse(&[norm(SAMPLE, V5, V8, 4, 0.0, None)], "weight: expected f32 [8], got ([5], \"f32\")");
    refuse(&[norm(SAMPLE, V8, V5, 4, 0.0, None)], "bias: expected f32 [8], got ([5], \"f32\")");
    refuse(&[norm(SAMPLE, V8, V8, 0, 0.0, None)], "groups: expected a divisor of 8, got 0");
    refuse(&[norm(SAMPLE, V8, V8, 3, 0.0, None)], "groups: expected a divisor of 8, got 3");
    refuse(&[norm(SAMPLE, V8, V8, 4, -0.5, None)], "eps: expected a finite number, not negative, got -0.5");
    let one = spec(1, QuantizeGrain::Sample, QuantizeRange::Dynamic);
    refuse(&[norm(SAMPLE, V8, V8, 4, 0.0, Some(one))], "quantize bits: expected 2 to 8, got 1");
}

#[test]
fn group_norm_takes_a_modulation_per_condition() {
    let norm = |value, scale, shift| {
        Op::GroupNorm(GroupNorm {
            x: SAMPLE,
            weight: V8,
            bias: V8,
            groups: 4,
            eps: 1e-6,
            modulation: Some(Modulation { value, scale, shift }),
            act: Act::Silu,
            quantize: None,
        })
    };
    accept(&[norm(TABLE, 0, 1)], &[2, 6, 10, 8], Kind::Float);
    refuse(&[norm(TABLE, 2, 0)], "scale: expected (3 conditions, at least 10), got [3, 9]");
    refuse(&[norm(TABLE, 0, 2)], "shift: expected (3 conditions, at least 10), got [3, 9]");
    refuse(&[norm(TABLE, u32::MAX, 0)], "scale: expected (3 conditions, at least 4294967303), got [3, 9]");
    refuse(&[norm(SAMPLE, 0, 0)], "scale: expected (3 conditions, at least 8), got [2, 6, 10, 8]");
    refuse(&[norm(LABELS, 0, 0)], "scale: expected float elements, got Index");
    refuse(&[norm(NO_VALUE, 0, 0)], "scale: expected a value below 4, got 99");
}

#[test]
fn resample_doubles_or_halves_the_pixels() {
    let resample = |x, how| Op::Resample(Resample { x, how });
    accept(&[resample(SAMPLE, Resampling::Nearest)], &[2, 12, 20, 8], Kind::Float);
    accept(&[resample(SAMPLE, Resampling::Mean)], &[2, 3, 5, 8], Kind::Float);
    // 3 x 5 pixels, then 1 x 2, then none.
    let halved = [SAMPLE, LAST, Value(5)].map(|x| resample(x, Resampling::Mean));
    accept(&halved[..2], &[2, 1, 2, 8], Kind::Float);
    refuse_size(&halved, "[2, 0, 1, 8]");
    refuse(&[resample(TABLE, Resampling::Nearest)], "x: expected (n, h, w, c), got [3, 9]");
    refuse(&[resample(LABELS, Resampling::Mean)], "x: expected float elements, got Index");
    let codes = "x: expected float elements, got Codes(QuantizeSpec { bits: 8, grain: Row, range: Dynamic })";
    refuse(&[quantize(SAMPLE, ROW8), resample(LAST, Resampling::Nearest)], codes);
}

#[test]
fn a_parameter_has_the_axes_of_its_tensor() {
    let parameter = |tensor| Op::Parameter(Parameter { tensor, ..Parameter::default() });
    for (tensor, dims) in [(V8, &[8][..]), (W, &[5, 8]), (CUBE, &[2, 2, 2]), (CONV, &[5, 3, 3, 8])] {
        accept(&[parameter(tensor)], dims, Kind::Float);
    }
    let flat = |tensor| Op::Parameter(Parameter { tensor, flat: true, ..Parameter::default() });
    for (tensor, elements) in [(V8, 8), (W, 40), (CUBE, 8), (CONV, 360)] {
        accept(&[flat(tensor)], &[1, elements], Kind::Float);
    }
    // A row of as many columns is added to every row of a value.
    let sum = Op::Add(Add { a: SAMPLE, b: LAST });
    accept(&[flat(CUBE), sum], &[2, 6, 10, 8], Kind::Float);
    refuse(&[flat(W), sum], "residual: expected rows dividing those of [2, 6, 10, 8], got [1, 40]");
    refuse(&[flat(W_I8)], "tensor: expected f16 or f32, 1 to 4 axes, got [5, 8]");
    refuse_size(&[flat(MANY_CONV)], "[1, 154618822656]");
    // Only the first of its rows.
    let first = |tensor, rows, flat| Op::Parameter(Parameter { tensor, rows, flat });
    accept(&[first(W, 3, false)], &[3, 8], Kind::Float);
    accept(&[first(W, 3, true)], &[1, 24], Kind::Float);
    accept(&[first(W, 5, false)], &[5, 8], Kind::Float);
    refuse(&[first(W, 6, false)], "rows: expected at most the 5 that the tensor has, got 6");
    refuse(&[parameter(W_I8)], "tensor: expected f16 or f32, 1 to 4 axes, got [5, 8]");
    refuse(&[parameter(NO_TENSOR)], "tensor: expected a tensor below 18, got 99");
    refuse_size(&[parameter(MANY_CONV)], "[2147483648, 3, 3, 8]");
}

#[test]
fn pointwise_takes_any_floats() {
    accept(&[pointwise(SAMPLE)], &[2, 6, 10, 8], Kind::Float);
    accept(&[pointwise(TIME)], &[3], Kind::Float);
    refuse(&[pointwise(LABELS)], "x: expected float elements, got Index");
    refuse(&[pointwise(NO_VALUE)], "x: expected a value below 4, got 99");
}

#[test]
fn add_repeats_rows_of_the_second_operand() {
    let add = |a, b| Op::Add(Add { a, b });
    accept(&[add(SAMPLE, SAMPLE)], &[2, 6, 10, 8], Kind::Float);
    let position = Op::PositionEmbedding(PositionEmbedding {
        x: SAMPLE,
        dim: 8,
        base: 4,
        interpolation: 1.0,
        keep_ratio: false,
        grid: Default::default(),
    });
    accept(&[position, add(SAMPLE, LAST)], &[2, 6, 10, 8], Kind::Float);
    let message = "residual: expected rows dividing those of [6, 10, 8], got [2, 6, 10, 8]";
    refuse(&[position, add(LAST, SAMPLE)], message);
    refuse(&[add(LABELS, SAMPLE)], "a: expected float elements, got Index");
    refuse(&[add(SAMPLE, LABELS)], "residual: expected float elements, got Index");
    refuse(&[add(SAMPLE, TABLE)], "residual: expected rows dividing those of [2, 6, 10, 8], got [3, 9]");
}

#[test]
fn quantize_gives_codes_of_its_own_spec() {
    for range in [QuantizeRange::Dynamic, QuantizeRange::curve(CURVE, CurveAxis::Timestep)] {
        for (bits, grain) in [(6, QuantizeGrain::Row), (8, QuantizeGrain::Sample)] {
            let spec = spec(bits, grain, range);
            accept(&[quantize(SAMPLE, spec)], &[2, 6, 10, 8], Kind::Codes(spec));
        }
    }
    accept(&[quantize(TIME, ROW8)], &[3], Kind::Codes(ROW8));
    refuse(&[quantize(LABELS, ROW8)], "x: expected float elements, got Index");
    let twice = "x: expected float elements, got Codes(QuantizeSpec { bits: 8, grain: Row, range: Dynamic })";
    refuse(&[quantize(SAMPLE, ROW8), quantize(LAST, ROW8)], twice);
    for range in [QuantizeRange::Dynamic, QuantizeRange::curve(CURVE, CurveAxis::Timestep)] {
        let spec = |bits| spec(bits, QuantizeGrain::Row, range);
        for bits in 2..=8 {
            accept(&[quantize(SAMPLE, spec(bits))], &[2, 6, 10, 8], Kind::Codes(spec(bits)));
        }
        for bits in [0, 1, 9, 16] {
            refuse(&[quantize(SAMPLE, spec(bits))], &format!("quantize bits: expected 2 to 8, got {bits}"));
        }
    }
    refuse(&[quantize(TIME, SAMPLE6)], "quantize grain: expected a value with samples, got [3]");
    let ends = |bits, top| {
        let range = RangeCurve { points: CURVE, axis: CurveAxis::Timestep, top };
        spec(bits, QuantizeGrain::Row, QuantizeRange::Curve(range))
    };
    for (bits, top) in [(8, 252), (8, 255), (4, 12), (4, 15), (2, 1)] {
        accept(&[quantize(SAMPLE, ends(bits, top))], &[2, 6, 10, 8], Kind::Codes(ends(bits, top)));
    }
    for (bits, top) in [(4, 16), (2, 255)] {
        let message = format!("quantize top: expected a code of {bits} bits, got {top}");
        refuse(&[quantize(SAMPLE, ends(bits, top))], &message);
    }
    let curve = |tensor| spec(8, QuantizeGrain::Row, QuantizeRange::curve(tensor, CurveAxis::StepFraction));
    refuse(&[quantize(SAMPLE, curve(NO_TENSOR))], "curve: expected a tensor below 18, got 99");
    refuse(&[quantize(SAMPLE, curve(W))], "curve: expected f32 [points, 3], got [5, 8]");
    refuse(&[quantize(SAMPLE, curve(V8))], "curve: expected f32 [points, 3], got [8]");
    refuse(&[quantize(SAMPLE, curve(CUBE))], "curve: expected f32 [points, 3], got [2, 2, 2]");
}

#[test]
fn factors_and_rotations_fit_the_row() {
    let turned = |x, spec, factors, block| Op::Quantize(Quantize { x, spec, turn: Some(Turn { factors, block }) });
    for block in [0, 8] {
        accept(&[turned(SAMPLE, ROW8, V8, block)], &[2, 6, 10, 8], Kind::Codes(ROW8));
    }
    refuse(&[turned(SAMPLE, ROW8, V5, 0)], "factors: expected f32 [8], got ([5], \"f32\")");
    refuse(&[turned(SAMPLE, ROW8, W_I8, 0)], "factors: expected f32 [8], got ([5, 8], \"not f32\")");
    for block in [1, 2, 4, 12, 16, 256, 512, u32::MAX] {
        let message = format!("block: expected 0, or a power of two from 8 to 256 that divides 8, got {block}");
        refuse(&[turned(SAMPLE, ROW8, V8, block)], &message);
    }
    let sample = spec(8, QuantizeGrain::Sample, QuantizeRange::Dynamic);
    refuse(
        &[turned(SAMPLE, sample, V8, 0)],
        "quantize grain: expected one scale per row, as there are factors, got \"sample\"",
    );
}

#[test]
fn rounding_gives_floats() {
    let round = |x, spec, parts| Op::Round(Round { x, spec, parts });
    let in_curve = spec(3, QuantizeGrain::Row, QuantizeRange::curve(CURVE, CurveAxis::Timestep));
    for (spec, parts) in [(ROW8, 0), (ROW8, 1), (ROW8, 8), (SAMPLE6, 0), (SAMPLE6, 1), (in_curve, 2)] {
        accept(&[round(SAMPLE, spec, parts)], &[2, 6, 10, 8], Kind::Float);
    }
    refuse(&[round(LABELS, ROW8, 0)], "x: expected float elements, got Index");
    refuse(&[round(SAMPLE, ROW8, 3)], "parts: expected a divisor of 8, got 3");
    refuse(
        &[round(SAMPLE, SAMPLE6, 2)],
        "quantize grain: expected one scale per row, as there are parts, got \"sample\"",
    );
    for bits in [0, 1, 9, 16] {
        let spec = spec(bits, QuantizeGrain::Row, QuantizeRange::Dynamic);
        refuse(&[round(SAMPLE, spec, 0)], &format!("quantize bits: expected 2 to 8, got {bits}"));
    }
    let curve = spec(8, QuantizeGrain::Row, QuantizeRange::curve(W, CurveAxis::StepFraction));
    refuse(&[round(SAMPLE, curve, 0)], "curve: expected f32 [points, 3], got [5, 8]");
}

#[test]
fn embedding_takes_row_numbers() {
    let embedding = |index, table| Op::Embedding(Embedding { index, table });
    accept(&[embedding(LABELS, W)], &[3, 8], Kind::Float);
    refuse(&[embedding(NO_VALUE, W)], "index: expected a value below 4, got 99");
    refuse(&[embedding(TIME, W)], "index: expected (conditions) or (n, t) row numbers, got ([3], Float)");
    refuse(&[embedding(LABELS, NO_TENSOR)], "table: expected a tensor below 18, got 99");
    refuse(&[embedding(LABELS, V8)], "table: expected f16 or f32 [rows, d], got [8]");
    refuse(&[embedding(LABELS, W_I8)], "table: expected f16 or f32 [rows, d], got [5, 8]");
    refuse(&[embedding(LABELS, CUBE)], "table: expected f16 or f32 [rows, d], got [2, 2, 2]");
}

#[test]
fn timestep_embedding_has_a_sine_for_each_cosine() {
    let embedding = |t, dim, shift| Op::TimestepEmbedding(TimestepEmbedding { t, dim, cos_first: false, shift });
    accept(&[embedding(TIME, 6, 1.0)], &[3, 6], Kind::Float);
    refuse(&[embedding(LABELS, 6, 1.0)], "t: expected float elements, got Index");
    refuse(&[embedding(SAMPLE, 6, 1.0)], "t: expected (conditions) or (conditions, k), got [2, 6, 10, 8]");
    let even = "dim, shift: expected an even dim of at least 4 and a shift below half of it, got ";
    let cases = [
        (0, 0.0, "(0, 0.0)"),
        (2, 0.0, "(2, 0.0)"),
        (5, 0.0, "(5, 0.0)"),
        (6, 3.0, "(6, 3.0)"),
        (6, f32::NAN, "(6, NaN)"),
        (6, f32::NEG_INFINITY, "(6, -inf)"),
    ];
    for (dim, shift, got) in cases {
        refuse(&[embedding(TIME, dim, shift)], &format!("{even}{got}"));
    }
}

#[test]
fn position_embedding_has_the_grid_of_its_operand() {
    let embedding = |x, dim, base, interpolation| {
        Op::PositionEmbedding(PositionEmbedding {
            x,
            dim,
            base,
            interpolation,
            keep_ratio: false,
            grid: Default::default(),
        })
    };
    accept(&[embedding(SAMPLE, 12, 4, 0.5)], &[6, 10, 12], Kind::Float);
    accept(&[quantize(SAMPLE, ROW8), embedding(LAST, 12, 4, 0.5)], &[6, 10, 12], Kind::Float);
    refuse(&[embedding(NO_VALUE, 8, 4, 1.0)], "x: expected a value below 4, got 99");
    refuse(&[embedding(TABLE, 8, 4, 1.0)], "x: expected (n, h, w, c), got [3, 9]");
    // Without a base, a grid of any size is its own one.
    accept(&[embedding(SAMPLE, 8, 0, 1.0)], &[6, 10, 8], Kind::Float);
    let positive = "dim, interpolation: expected a multiple of 4, and a positive number, got ";
    let cases = [
        (0, 1.0, "(0, 1.0)"),
        (6, 1.0, "(6, 1.0)"),
        (8, 0.0, "(8, 0.0)"),
        (8, -1.0, "(8, -1.0)"),
        (8, f32::NAN, "(8, NaN)"),
        (8, f32::INFINITY, "(8, inf)"),
    ];
    for (dim, interpolation, got) in cases {
        refuse(&[embedding(SAMPLE, dim, 4, interpolation)], &format!("{positive}{got}"));
    }
    refuse_size(&[embedding(SAMPLE, MUCH, 4, 1.0)], "[6, 10, 2147483648]");
}

#[test]
fn patches_divide_the_size() {
    let patchify = |x, patch| Op::Patchify(Patchify { x, patch });
    accept(&[patchify(SAMPLE, 1)], &[2, 6, 10, 8], Kind::Float);
    accept(&[patchify(SAMPLE, 2)], &[2, 3, 5, 32], Kind::Float);
    for patch in [0, 3, 4, 5, 6, 10, u32::MAX] {
        let multiples = format!("x: expected height and width in multiples of the patch size {patch}");
        refuse(&[patchify(SAMPLE, patch)], &format!("{multiples}, got [2, 6, 10, 8]"));
    }
    refuse(&[patchify(TABLE, 1)], "x: expected (n, h, w, c) or (n, f, h, w, c), got [3, 9]");
    let codes = "x: expected float elements, got Codes(QuantizeSpec { bits: 8, grain: Row, range: Dynamic })";
    refuse(&[quantize(SAMPLE, ROW8), patchify(LAST, 1)], codes);
}

#[test]
fn unpatchify_undoes_patchify() {
    let unpatchify = |x, patch| Op::Unpatchify(Unpatchify { x, patch });
    accept(&[unpatchify(SAMPLE, 2)], &[2, 12, 20, 2], Kind::Float);
    accept(&[Op::Patchify(Patchify { x: SAMPLE, patch: 2 }), unpatchify(LAST, 2)], &[2, 6, 10, 8], Kind::Float);
    for patch in [0, 3, 4, 1 << 12, 1 << 16, u32::MAX] {
        let multiples = format!("x: expected features in multiples of {patch} x {patch}");
        refuse(&[unpatchify(SAMPLE, patch)], &format!("{multiples}, got [2, 6, 10, 8]"));
    }
    refuse(&[unpatchify(TABLE, 1)], "x: expected (n, h, w, c), got [3, 9]");
    refuse(&[unpatchify(LABELS, 1)], "x: expected float elements, got Index");
}

#[test]
fn a_slice_has_columns_that_there_are() {
    let slice = |x, first, count| Op::Slice(Slice { x, first, count, tokens: false });
    accept(&[slice(SAMPLE, 0, 8)], &[2, 6, 10, 8], Kind::Float);
    accept(&[slice(SAMPLE, 5, 3)], &[2, 6, 10, 3], Kind::Float);
    accept(&[slice(TABLE, 8, 1)], &[3, 1], Kind::Float);
    let message = "columns: expected some of the 8 that x has, got";
    refuse(&[slice(SAMPLE, 5, 4)], &format!("{message} \"4 from 5 on\""));
    refuse(&[slice(SAMPLE, 8, 0)], &format!("{message} \"0 from 8 on\""));
    refuse(&[slice(SAMPLE, u32::MAX, u32::MAX)], &format!("{message} \"{0} from {0} on\"", u32::MAX));
    refuse(&[slice(LABELS, 0, 1)], "x: expected float elements, got Index");
}

#[test]
fn tokens_are_joined_and_sliced() {
    // (2, 6, 10, 8) has no axis of tokens; patches of a row have.
    let concat = |a, b, tokens| Op::Concat(Concat { a, b, tokens });
    let slice = |x, first, count| Op::Slice(Slice { x, first, count, tokens: true });
    let cube = Op::Parameter(Parameter { tensor: CUBE, flat: false, rows: 0 });
    accept(&[cube, concat(LAST, LAST, true)], &[2, 4, 2], Kind::Float);
    accept(&[cube, slice(LAST, 1, 1)], &[2, 1, 2], Kind::Float);
    refuse(&[cube, slice(LAST, 1, 2)], "tokens: expected some of the 2 that x has, got \"2 from 1 on\"");
    refuse(&[slice(SAMPLE, 0, 1)], "x: expected (n, t, d), got [2, 6, 10, 8]");
    let both = "a, b: expected (n, t, d) and (n, u, d), got";
    refuse(&[cube, concat(LAST, SAMPLE, true)], &format!("{both} ([2, 2, 2], [2, 6, 10, 8])"));
    refuse(&[cube, concat(TABLE, LAST, true)], &format!("{both} ([3, 9], [2, 2, 2])"));
    // Rows repeat: those of a row, of a half, of all.
    let row = Op::Parameter(Parameter { tensor: V8, flat: true, rows: 0 });
    accept(&[row, concat(TABLE, LAST, false)], &[3, 17], Kind::Float);
    accept(&[cube, concat(SAMPLE, LAST, false)], &[2, 6, 10, 10], Kind::Float);
    refuse(&[cube, concat(TABLE, LAST, false)], "b: expected rows dividing those of [3, 9], got [2, 2, 2]");
    refuse(&[concat(TABLE, SAMPLE, false)], "b: expected rows dividing those of [3, 9], got [2, 6, 10, 8]");
}

#[test]
fn padding_has_a_row_for_every_token() {
    let pad = |x, lengths, table, first| Op::PadRows(PadRows { x, lengths, table, first });
    let cube = Op::Parameter(Parameter { tensor: CUBE, flat: false, rows: 0 });
    refuse(&[pad(SAMPLE, LABELS, ROWS, 0)], "x: expected (n, t, d), got [2, 6, 10, 8]");
    refuse(&[cube, pad(LAST, LABELS, ROWS, 0)], "lengths: expected u32 [2], got ([3], Index)");
    refuse(&[cube, pad(LAST, TIME, ROWS, 0)], "lengths: expected u32 [2], got ([3], Float)");
    // Three texts of the conditions: one token of nine features each.
    let texts = [Op::Parameter(Parameter { tensor: ROWS, flat: false, rows: 0 })];
    refuse(&[texts[0], pad(LAST, LABELS, ROWS, 0)], "x: expected (n, t, d), got [7, 9]");
}

#[test]
fn heads_turn_by_a_table_of_their_own_length() {
    let rotary = |x, table, heads| Op::Rotary(Rotary { x, table, heads });
    let grid = |dim| {
        Op::PositionEmbedding(PositionEmbedding {
            x: SAMPLE,
            dim,
            base: 4,
            interpolation: 1.0,
            keep_ratio: true,
            grid: Default::default(),
        })
    };
    accept(&[grid(4), rotary(SAMPLE, LAST, 2)], &[2, 6, 10, 8], Kind::Float);
    accept(&[grid(8), rotary(SAMPLE, LAST, 1)], &[2, 6, 10, 8], Kind::Float);
    for heads in [0, 3, 4] {
        let message = format!("heads: expected a divisor of 8 that leaves multiples of 4, got {heads}");
        refuse(&[grid(4), rotary(SAMPLE, LAST, heads)], &message);
    }
    let table = "table: expected 4 columns, and rows dividing those of [2, 6, 10, 8], got";
    refuse(&[grid(8), rotary(SAMPLE, LAST, 2)], &format!("{table} [6, 10, 8]"));
    refuse(&[rotary(SAMPLE, TABLE, 2)], &format!("{table} [3, 9]"));
    refuse(&[rotary(TABLE, TABLE, 1)], "heads: expected a divisor of 9 that leaves multiples of 4, got 1");
}

#[test]
fn a_norm_of_parts_or_with_a_shift_has_no_more() {
    let norm = LayerNorm { x: SAMPLE, ..LayerNorm::default() };
    let shift = Some(Columns { value: TABLE, offset: 1 });
    accept(&[LayerNorm { parts: 2, ..norm }.into()], &[2, 6, 10, 8], Kind::Float);
    accept(&[LayerNorm { shift, weight: Some(V8), ..norm }.into()], &[2, 6, 10, 8], Kind::Float);
    accept(&[LayerNorm { shift, quantize: Some(ROW8), ..norm }.into()], &[2, 6, 10, 8], Kind::Codes(ROW8));
    refuse(&[LayerNorm { parts: 3, ..norm }.into()], "parts: expected a divisor of 8, got 3");
    let alone = "parts: expected 1 in a norm that is modulated or quantized, got 2";
    refuse(&[LayerNorm { parts: 2, shift, ..norm }.into()], alone);
    refuse(&[LayerNorm { parts: 2, quantize: Some(ROW8), ..norm }.into()], alone);
    refuse(&[LayerNorm { parts: 2, weight: Some(V8), ..norm }.into()], "weight: expected f32 [4], got ([8], \"f32\")");
    let modulation = Some(Modulation { value: TABLE, scale: 0, shift: 1 });
    refuse(&[LayerNorm { shift, modulation, ..norm }.into()], "shift: expected none beside a modulation, got 1");
    let far = Some(Columns { value: TABLE, offset: 2 });
    refuse(&[LayerNorm { shift: far, ..norm }.into()], "shift: expected (3 conditions, at least 10), got [3, 9]");
}
