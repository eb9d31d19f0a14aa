//! Pictures resized so that they cover another size.

/// `picture` `(h, w, channels)` of the size `from`, resized in its proportions so that it covers `to`, with what hangs over cut off
/// on both sides: diffusers' `VaeImageProcessor.resize_and_crop_tensor`, bilinear between centres of pixels, the outermost
/// continued, and without a filter where it becomes smaller (torch's `interpolate` of mode `bilinear`).
pub fn cover(picture: &[f32], from: [usize; 2], to: [usize; 2], channels: usize) -> Vec<f32> {
    if from == to {
        return picture.to_vec();
    }
    let ratio = (to[0] as f64 / from[0] as f64).max(to[1] as f64 / from[1] as f64);
    let [rows, columns] = [0, 1].map(|axis| samples(from[axis], to[axis], ratio));
    let pixel = |y: usize, x: usize| &picture[(y * from[1] + x) * channels..][..channels];
    let mut made = Vec::with_capacity(to[0] * to[1] * channels);
    for &([above, below], down) in &rows {
        for &([left, right], across) in &columns {
            let corners = [pixel(above, left), pixel(above, right), pixel(below, left), pixel(below, right)];
            let weights = [(1.0 - down) * (1.0 - across), (1.0 - down) * across, down * (1.0 - across), down * across];
            made.extend(
                (0..channels).map(|c| corners.iter().zip(weights).map(|(p, weight)| p[c] * weight).sum::<f32>()),
            );
        }
    }
    made
}

/// Of each of `to` pixels of an axis of `from`, the two pixels that it lies between and the share of the second.
fn samples(from: usize, to: usize, ratio: f64) -> Vec<([usize; 2], f32)> {
    // Rounding may make the axis that decides the ratio one too short.
    let resized = ((from as f64 * ratio) as usize).max(to);
    let first = (resized - to) / 2;
    let scale = from as f64 / resized as f64;
    let sample = |i: usize| {
        let place = ((i as f64 + 0.5) * scale - 0.5).max(0.0);
        let before = (place as usize).min(from - 1);
        ([before, (before + 1).min(from - 1)], (place - before as f64) as f32)
    };
    (first..first + to).map(sample).collect()
}
