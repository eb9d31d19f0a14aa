//! Pictures at the size that a network looks at, each as its authors make it. Values are those of bytes, 0 to 255.

use super::Map;

/// Bits behind the point of Pillow's weights where it works with bytes: 32 less 8 of a byte and 2 for filters that overshoot.
const PRECISION: i32 = 32 - 8 - 2;

/// `picture` at another size as TensorFlow 1 resizes it: pixel `i` lies at `i` times the quotient of sides, between two pixels
/// of the picture or on its last, without a filter where it becomes smaller.
pub fn bilinear(picture: &Map, size: [usize; 2]) -> Map {
    let axis = |axis: usize| -> Vec<(usize, usize, f32)> {
        let (from, to) = (picture.size[axis], size[axis]);
        let scale = (from as f64 / to as f64) as f32;
        let sample = |i: usize| {
            let place = i as f32 * scale;
            let before = place as usize;
            (before, (before + 1).min(from - 1), place - before as f32)
        };
        (0..to).map(sample).collect()
    };
    let (rows, columns, channels) = (axis(0), axis(1), picture.channels);
    let mut values = Vec::with_capacity(size[0] * size[1] * channels);
    for &(above, below, down) in &rows {
        for &(left, right, across) in &columns {
            let pixel = |y: usize, x: usize| &picture.values[(y * picture.size[1] + x) * channels..][..channels];
            let [a, b, c, d] = [pixel(above, left), pixel(above, right), pixel(below, left), pixel(below, right)];
            values.extend((0..channels).map(|k| {
                let upper = a[k] + (b[k] - a[k]) * across;
                let lower = c[k] + (d[k] - c[k]) * across;
                upper + (lower - upper) * down
            }));
        }
    }
    Map { size, channels, values }
}

/// `picture` at another size as Pillow's `resize` makes it of floats, bicubic (a = -0.5), and then cut to 0..255: what clean-fid
/// does.
pub fn bicubic(picture: &Map, size: [usize; 2]) -> Map {
    let mut resized = passes(picture, size, &|weights, pixels| {
        let sum: f64 = weights.iter().zip(pixels).map(|(weight, pixel)| weight * f64::from(pixel)).sum();
        sum as f32
    });
    resized.values.iter_mut().for_each(|v| *v = v.clamp(0.0, 255.0));
    resized
}

/// The same of bytes, as Pillow makes it: weights in 22 bits, each pass rounded to bytes.
pub fn bicubic_bytes(picture: &Map, size: [usize; 2]) -> Map {
    passes(picture, size, &|weights, pixels| {
        // Pillow rounds weights away from zero, sums up and rounds.
        let whole = |weight: f64| (weight * f64::from(1 << PRECISION)).round() as i64;
        let sum: i64 = weights.iter().zip(pixels).map(|(weight, pixel)| whole(*weight) * pixel as i64).sum();
        ((sum + (1 << (PRECISION - 1))) >> PRECISION).clamp(0, 255) as f32
    })
}

/// The pixels under one pixel of the result: the first, and what each weighs.
struct Window {
    first: usize,
    weights: Vec<f64>,
}

/// The windows that make an axis of `to` pixels of one of `from`: Keys' cubic, as wide as pixels become.
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let cubic = |x: f64| match x.abs() {
        x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
        _ => 0.0,
    };
    let window = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        // `as` cuts negative numbers to 0.
        let first = (centre - support + 0.5) as usize;
        let last = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<f64> = (first..last).map(|x| cubic((x as f64 - centre + 0.5) * (1.0 / stretch))).collect();
        let sum: f64 = weights.iter().sum();
        Window { first, weights: weights.iter().map(|w| w / sum).collect() }
    };
    (0..to).map(window).collect()
}

/// What makes a value of weights and pixels.
type Weigh<'a> = &'a dyn Fn(&[f64], &mut dyn Iterator<Item = f32>) -> f32;

/// Both passes. The one that leaves fewer lines comes first, if they are far fewer, as since Pillow 13; which differs in the
/// rounding alone.
fn passes(picture: &Map, size: [usize; 2], weigh: Weigh<'_>) -> Map {
    let [fewer_rows, fewer_columns] = [0, 1].map(|axis| picture.size[axis].saturating_sub(size[axis]));
    if fewer_rows > 2 * fewer_columns {
        return with_columns(&with_rows(picture, size[0], weigh), size[1], weigh);
    }
    with_rows(&with_columns(picture, size[1], weigh), size[0], weigh)
}

/// `picture` with so many columns.
fn with_columns(picture: &Map, columns: usize, weigh: Weigh<'_>) -> Map {
    let ([height, width], channels) = (picture.size, picture.channels);
    if width == columns {
        return picture.clone();
    }
    let windows = windows(width, columns);
    let mut values = Vec::with_capacity(height * columns * channels);
    for row in picture.values.chunks_exact(width * channels) {
        for Window { first, weights } in &windows {
            let pixels = |channel: usize| row[first * channels + channel..].iter().step_by(channels).copied();
            values.extend((0..channels).map(|channel| weigh(weights, &mut pixels(channel))));
        }
    }
    Map { size: [height, columns], channels, values }
}

/// `picture` with so many rows.
fn with_rows(picture: &Map, rows: usize, weigh: Weigh<'_>) -> Map {
    let ([height, width], channels) = (picture.size, picture.channels);
    if height == rows {
        return picture.clone();
    }
    let line = width * channels;
    let mut values = Vec::with_capacity(rows * line);
    for Window { first, weights } in &windows(height, rows) {
        let pixels = |at: usize| picture.values[first * line + at..].iter().step_by(line).copied();
        values.extend((0..line).map(|at| weigh(weights, &mut pixels(at))));
    }
    Map { size: [rows, width], channels, values }
}
