//! Colours of pictures: a letter in one colour on another.

/// Named colours in sRGB, in the order of their numbers.
pub const COLOURS: [(&str, [u8; 3]); 8] = [
    ("black", [20, 20, 20]),
    ("white", [245, 245, 245]),
    ("red", [214, 40, 40]),
    ("green", [40, 150, 70]),
    ("blue", [40, 80, 215]),
    ("yellow", [250, 215, 40]),
    ("pink", [250, 150, 190]),
    ("purple", [150, 50, 170]),
];
/// Pixels at each border that are background.
const FRAME: usize = 2;
/// Pixels that are ink: those that differ most from the background.
const INK_PIXELS: usize = 40;

/// Numbers of two of [`COLOURS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colours {
    /// Of the letter.
    pub ink: usize,
    /// Of what is around it.
    pub background: usize,
}

/// The colours of a picture `(height, width, 3)` in 0..1, of more than 40 pixels: the background is the median of the
/// frame two pixels wide at the border, ink the median of the 40 pixels farthest from that; each is called by the nearest
/// named colour.
pub fn read_colours(picture: &[f32], [height, width]: [usize; 2]) -> Colours {
    let pixels: Vec<[f32; 3]> = picture.chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect();
    let at_border = |i: usize, n: usize| i < FRAME || i + FRAME >= n;
    let in_frame = |i: &usize| at_border(i / width, height) || at_border(i % width, width);
    let background = median((0..pixels.len()).filter(in_frame).map(|i| pixels[i]));
    let mut order: Vec<(f32, [f32; 3])> = pixels.iter().map(|&p| (distance(p, background), p)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let ink = median(order.iter().take(INK_PIXELS).map(|(_, pixel)| *pixel));
    Colours { ink: nearest(ink), background: nearest(background) }
}

/// Squared Euclidean distance.
fn distance(a: [f32; 3], b: [f32; 3]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// The number of the nearest named colour.
fn nearest(colour: [f32; 3]) -> usize {
    let distances = COLOURS.map(|(_, named)| distance(colour, named.map(|v| f32::from(v) / 255.0)));
    (0..COLOURS.len()).fold(0, |best, i| if distances[i] < distances[best] { i } else { best })
}

/// The median of each channel; of an even number, the mean of the two in the middle.
fn median(pixels: impl Iterator<Item = [f32; 3]>) -> [f32; 3] {
    let pixels: Vec<[f32; 3]> = pixels.collect();
    std::array::from_fn(|channel| {
        let mut values: Vec<f32> = pixels.iter().map(|pixel| pixel[channel]).collect();
        values.sort_by(f32::total_cmp);
        let n = values.len();
        (values[(n - 1) / 2] + values[n / 2]) / 2.0
    })
}
