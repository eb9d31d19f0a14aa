//! Pictures of another size, byte for byte as Pillow 13's `Image.resize` makes them: windowed filters whose weights are
//! rounded to 22 bits, along lines and along columns, each pass rounded to bytes.

use super::Image;
use std::ops::Range;

/// Bits behind the point of a weight: 32 less 8 of a byte and 2 for filters that overshoot.
const PRECISION: u32 = 32 - 8 - 2;

/// Which pixels weigh how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Keys' cubic convolution with a = -0.5.
    Bicubic,
    /// Lanczos' window of three lobes.
    Lanczos,
}

impl Filter {
    /// Pixels on each side that weigh anything, where none are left out.
    fn support(self) -> f64 {
        match self {
            Filter::Bicubic => 2.0,
            Filter::Lanczos => 3.0,
        }
    }

    /// The weight at distance `x`.
    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| match x * std::f64::consts::PI {
            0.0 => 1.0,
            x => x.sin() / x,
        };
        match self {
            Filter::Bicubic => match x.abs() {
                x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
                x if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
                _ => 0.0,
            },
            Filter::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Filter::Lanczos => 0.0,
        }
    }
}

/// The pixels under one pixel of the result: the first, and what each weighs.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// How an axis is resized: the pixels of `part`, from one up to another, become `to` pixels, of which `keep` are wanted. A
/// part may be empty: the place where it lies is then continued.
pub struct Axis {
    /// First pixel, and the one after the last.
    pub part: [u32; 2],
    /// Pixels that they become.
    pub to: u32,
    /// Those that the result has.
    pub keep: Range<u32>,
}

impl Axis {
    /// All pixels of `part` as `to` pixels.
    pub fn new(part: [u32; 2], to: u32) -> Self {
        Axis { part, to, keep: 0..to }
    }

    /// Whether an axis of `len` pixels stays as it is.
    fn keeps(&self, len: u32) -> bool {
        self.part == [0, len] && self.keep == (0..len) && self.to == len
    }
}

/// The windows that make an axis of what was one of `len`.
fn windows(len: usize, axis: &Axis, filter: Filter) -> Vec<Window> {
    let [begin, end] = axis.part.map(f64::from);
    let scale = (end - begin) / f64::from(axis.to);
    // Less than one pixel of the source per pixel: the filter interpolates. More: it is stretched over all of them.
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let window = |i: u32| {
        let centre = begin + (f64::from(i) + 0.5) * scale;
        // `as` cuts negative numbers to 0.
        let first = (centre - support + 0.5) as usize;
        let last = ((centre + support + 0.5) as usize).min(len);
        let weights: Vec<f64> =
            (first..last).map(|p| filter.weight((p as f64 - centre + 0.5) * stretch.recip())).collect();
        let sum: f64 = weights.iter().sum();
        let fixed = |weight: &f64| {
            let weight = if sum == 0.0 { *weight } else { weight / sum };
            // Halves go away from zero; `as` cuts.
            (weight * f64::from(1 << PRECISION) + 0.5f64.copysign(weight)) as i32
        };
        Window { first, weights: weights.iter().map(fixed).collect() }
    };
    axis.keep.clone().map(window).collect()
}

/// What sums begin with, so that cutting rounds them.
const HALF: i32 = 1 << (PRECISION - 1);

/// A sum of weighted pixels as a byte.
fn byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// `image` with these columns and rows. Of RGBA, colours are weighed by their opacity.
pub fn resize(image: &Image, columns: &Axis, rows: &Axis, filter: Filter) -> Image {
    let same = columns.keeps(image.width()) && rows.keeps(image.height());
    if image.channels() == 4 && !same {
        return unweighed(passes(&weighed(image), columns, rows, filter));
    }
    passes(image, columns, rows, filter)
}

/// Both passes. The one that leaves fewer lines comes first, if they are far fewer; earlier versions of Pillow always begin
/// along lines, which differs in the rounding alone.
fn passes(image: &Image, columns: &Axis, rows: &Axis, filter: Filter) -> Image {
    let lost = |len: u32, axis: &Axis| i64::from(len) - i64::from(axis.to);
    let (fewer_rows, fewer_columns) = (lost(image.height(), rows), lost(image.width(), columns));
    if fewer_rows > 0 && fewer_rows > 2 * fewer_columns {
        return with_columns(&with_rows(image, rows, filter), columns, filter);
    }
    with_rows(&with_columns(image, columns, filter), rows, filter)
}

/// `image` with these columns.
fn with_columns(image: &Image, axis: &Axis, filter: Filter) -> Image {
    if axis.keeps(image.width()) {
        return image.clone();
    }
    let (columns, channels) = (image.width() as usize, image.channels());
    let windows = windows(columns, axis, filter);
    let lines = image.bytes().chunks_exact(columns * channels);
    let bytes = lines.flat_map(|line| across(line, channels, &windows)).collect();
    Image::new(axis.keep.len() as u32, image.height(), channels, bytes)
}

/// `image` with these rows.
fn with_rows(image: &Image, axis: &Axis, filter: Filter) -> Image {
    if axis.keeps(image.height()) {
        return image.clone();
    }
    let line = image.width() as usize * image.channels();
    let windows = windows(image.height() as usize, axis, filter);
    let bytes = windows.iter().flat_map(|window| down(image.bytes(), line, window)).collect();
    Image::new(image.width(), axis.keep.len() as u32, image.channels(), bytes)
}

/// A line of pixels, one for each of `windows`.
fn across<'a>(line: &'a [u8], channels: usize, windows: &'a [Window]) -> impl Iterator<Item = u8> + 'a {
    let pixel = move |window: &'a Window, channel: usize| {
        let pixels = line[window.first * channels + channel..].iter().step_by(channels);
        byte(pixels.zip(&window.weights).fold(HALF, |sum, (&pixel, weight)| sum + i32::from(pixel) * weight))
    };
    windows.iter().flat_map(move |window| (0..channels).map(move |channel| pixel(window, channel)))
}

/// A line of `len` bytes, of the lines of `bytes` under `window`.
fn down(bytes: &[u8], len: usize, window: &Window) -> Vec<u8> {
    let mut sums = vec![HALF; len];
    for (line, weight) in bytes.chunks_exact(len).skip(window.first).zip(&window.weights) {
        sums.iter_mut().zip(line).for_each(|(sum, &byte)| *sum += i32::from(byte) * weight);
    }
    sums.into_iter().map(byte).collect()
}

/// RGBA with colours multiplied by opacity.
fn weighed(image: &Image) -> Image {
    let multiply = |colour: u8, alpha: u8| {
        let product = u32::from(colour) * u32::from(alpha) + 128;
        (((product >> 8) + product) >> 8) as u8
    };
    each(image, multiply)
}

/// The inverse of [`weighed`].
fn unweighed(image: Image) -> Image {
    each(&image, |colour, alpha| match alpha {
        0 | 255 => colour,
        _ => (255 * u32::from(colour) / u32::from(alpha)).min(255) as u8,
    })
}

/// RGBA with `change` of each colour and its opacity in place of the colour.
fn each(image: &Image, change: impl Fn(u8, u8) -> u8) -> Image {
    let mut bytes = image.bytes().to_vec();
    for pixel in bytes.chunks_exact_mut(4) {
        let alpha = pixel[3];
        pixel[..3].iter_mut().for_each(|colour| *colour = change(*colour, alpha));
    }
    Image::new(image.width(), image.height(), 4, bytes)
}
