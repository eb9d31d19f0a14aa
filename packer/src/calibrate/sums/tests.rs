use super::*;
use crate::quantize::{Moments, SecondMoments};
use aquatint::raw::program::ConvStride;

/// Small integers, so that sums are exact and their order does not show.
fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 13) as f32 - 5.0).collect()
}

fn place(image: usize, branch: usize) -> Place {
    Place { image, call: 0, branch }
}

fn sums(rows: Rows, share: Share, slices: &[Slice<'_>]) -> Sums {
    let mut accumulator = Accumulator::new(rows, share, Sums::new(&rows, 1));
    accumulator.push(0, slices).expect("finite");
    flush([&mut accumulator]);
    flush([&mut accumulator]);
    accumulator.sums
}

/// The rows of windows of a plane, by the definition.
fn rows_of(windows: &Windows, sample: &[f32]) -> Vec<Vec<f32>> {
    let Windows { channels, plane, out, sampling } = *windows;
    let walked = windows.walked();
    let at = |y: isize, x: isize, c: usize| {
        let inside = y >= 0 && x >= 0 && (y as usize) < walked[0] && (x as usize) < walked[1];
        let up = sampling.upsample() as isize;
        if inside { sample[((y / up) as usize * plane[1] + (x / up) as usize) * channels + c] } else { 0.0 }
    };
    let (stride, before) = (sampling.stride() as isize, sampling.before() as isize);
    let pixels = (0..out[0] as isize).flat_map(|y| (0..out[1] as isize).map(move |x| (y, x)));
    let row = |(y, x): (isize, isize)| {
        let taps = (0..3).flat_map(|dy| (0..3).map(move |dx| (dy, dx)));
        let tap = |(dy, dx)| (0..channels).map(move |c| (y * stride + dy - before, x * stride + dx - before, c));
        taps.flat_map(tap).map(|(y, x, c)| at(y, x, c)).collect()
    };
    pixels.map(row).collect()
}

fn all_windows() -> Vec<Windows> {
    let new = |channels, plane, out, sampling| Windows { channels, plane, out, sampling };
    vec![
        new(2, [4, 5], [4, 5], ConvStride::Same),
        new(70, [3, 2], [3, 2], ConvStride::Same),
        new(3, [5, 4], [3, 2], ConvStride::Down),
        new(3, [5, 4], [2, 2], ConvStride::DownPadEnd),
        new(2, [2, 3], [4, 6], ConvStride::Up),
        new(2, [2, 3], [3, 5], ConvStride::Up),
        new(1, [1, 1], [1, 1], ConvStride::Same),
    ]
}

#[test]
fn sums_are_those_of_all_rows() {
    let own = |inputs: usize, rows: usize, seed| values(inputs * rows, seed);
    for (inputs, count) in [(1, 3), (5, 300), (130, 20), (64, 257)] {
        let (a, b) = (own(inputs, count, 1), own(inputs, count, 2));
        let slice = |values, image, weight| Slice { values, place: place(image, 0), weight };
        let got = sums(Rows::Own(inputs), None, &[slice(&a[..], 0, 1.0), slice(&b[..], 1, 3.0)]);
        let rows: Vec<(&[f32], f64)> =
            a.chunks(inputs).map(|r| (r, 1.0)).chain(b.chunks(inputs).map(|r| (r, 3.0))).collect();
        assert_eq!((got.rows, got.weight, got.groups), (2.0 * count as f64, 4.0 * count as f64, 4.0 * count as f64));
        let sum = |f: &dyn Fn(&[f32]) -> f64| rows.iter().map(|(r, w)| w * f(r)).sum::<f64>();
        for i in 0..inputs {
            assert_eq!(got.sum[i], sum(&|r| f64::from(r[i])));
            for j in 0..=i {
                assert_eq!(got.second[triangle(i) + j], sum(&|r| f64::from(r[i]) * f64::from(r[j])), "{i} {j}");
            }
        }
        assert_eq!(got.bins.iter().sum::<u64>(), 4 * (inputs * count) as u64);
    }
}

#[test]
fn windows_are_unfolded_and_padded() {
    for windows in all_windows() {
        let planes = [1, 2].map(|seed| values(windows.plane[0] * windows.plane[1] * windows.channels, seed));
        let slices = [0, 1].map(|i| Slice { values: &planes[i], place: place(i, 0), weight: 1.0 });
        let got = sums(Rows::Windows(windows), None, &slices);
        let rows: Vec<Vec<f32>> = planes.iter().flat_map(|plane| rows_of(&windows, plane)).collect();
        assert_eq!((got.rows, got.groups), (rows.len() as f64, 2.0), "{windows:?}");
        for i in 0..9 * windows.channels {
            for j in 0..=i {
                let expected: f64 = rows.iter().map(|r| f64::from(r[i]) * f64::from(r[j])).sum();
                assert_eq!(got.second[triangle(i) + j], expected, "{windows:?} {i} {j}");
            }
        }
        let by_displacement = sums(Rows::Displacements(windows), None, &slices);
        assert_eq!((by_displacement.rows, &by_displacement.sum), (got.rows, &got.sum), "{windows:?}");
        assert_eq!((by_displacement.walk == got.sum, got.walk.len()), (windows.sampling.stride() == 1, 0));
        assert_eq!((by_displacement.low, by_displacement.bins), (got.low, got.bins));
    }
}

#[test]
fn displacements_are_correlations_over_the_padded_plane() {
    for windows in all_windows() {
        let ([height, width], channels) = (windows.walked(), windows.channels);
        let sample = values(windows.plane[0] * windows.plane[1] * channels, 3);
        let slice = Slice { values: &sample, place: place(0, 0), weight: 1.0 };
        let got = sums(Rows::Displacements(windows), None, &[slice]);
        assert_eq!(got.pixels, (height * width) as f64);
        // The middle taps of the windows of a convolution of stride 1 over the plane are the plane itself.
        let walk = Windows { plane: windows.plane, out: [height, width], ..windows };
        let same = if walk.sampling == ConvStride::Up { walk.sampling } else { ConvStride::Same };
        let rows = rows_of(&Windows { sampling: same, ..walk }, &sample);
        let at = |y: isize, x: isize, c: usize| {
            let inside = y >= 0 && x >= 0 && (y as usize) < height && (x as usize) < width;
            if inside { f64::from(rows[y as usize * width + x as usize][4 * channels + c]) } else { 0.0 }
        };
        for ((dy, dx), lag) in displacements().zip(got.second.chunks(channels * channels)) {
            for (a, b) in (0..channels).flat_map(|a| (0..channels).map(move |b| (a, b))) {
                let pixels = (0..height as isize).flat_map(|y| (0..width as isize).map(move |x| (y, x)));
                let expected: f64 = pixels.map(|(y, x)| at(y, x, a) * at(y + dy as isize, x + dx, b)).sum();
                assert_eq!(lag[a * channels + b], expected, "{windows:?} {dy} {dx} {a} {b}");
            }
        }
    }
}

#[test]
fn by_displacement_means_and_squares_are_of_one_set_of_inputs_however_large_the_mean() {
    for windows in all_windows() {
        let planes: Vec<Vec<f32>> = (0..3)
            .map(|seed| values(windows.plane[0] * windows.plane[1] * windows.channels, seed))
            .map(|plane| plane.iter().map(|v| 50.0 + v).collect())
            .collect();
        let slices: Vec<Slice<'_>> =
            (0..3).map(|i| Slice { values: &planes[i], place: place(i, 0), weight: 1.0 }).collect();
        let got = sums(Rows::Displacements(windows), None, &slices);
        let mean: Vec<f64> = got.sum.iter().map(|v| v / got.weight).collect();
        let lags = got.second.iter().map(|v| v / got.pixels).collect();
        let centre = got.walk.iter().map(|v| v / got.pixels).collect();
        let second = SecondMoments::Toeplitz { channels: windows.channels, kernel: KERNEL, lags, centre };
        let moments = Moments { rows: got.weight, mean, second };
        // `v C v` is a variance for every v: for single inputs, for differences of two, and for all together.
        let all: Vec<usize> = (0..9 * windows.channels).collect();
        let covariance = moments.block(&all, &all, true);
        let form = |v: &[(usize, f64)]| -> f64 {
            v.iter().map(|&(i, a)| v.iter().map(|&(j, b)| a * b * covariance[[i, j]]).sum::<f64>()).sum()
        };
        let scale = 2500.0 * 1e-9;
        for i in 0..all.len() {
            for j in 0..i {
                assert!(form(&[(i, 1.0), (j, -1.0)]) > -scale, "{windows:?} {i} - {j}");
                assert!(form(&[(i, 1.0), (j, 1.0)]) > -scale, "{windows:?} {i} + {j}");
            }
        }
        for seed in 0..50 {
            let signs: Vec<(usize, f64)> =
                values(all.len(), seed).iter().enumerate().map(|(i, &v)| (i, f64::from(v))).collect();
            assert!(form(&signs) > -scale * signs.len() as f64 * 36.0, "{windows:?}");
        }
    }
}

#[test]
fn a_share_of_rows_is_that_of_their_places_and_ranges_are_of_all() {
    let x = values(4 * 1000, 1);
    let slices: Vec<Slice<'_>> =
        (0..20).map(|i| Slice { values: &x[200 * i..][..200], place: place(i / 2, i % 2), weight: 1.0 }).collect();
    let share = super::super::hash::share(1000, 300);
    let got = sums(Rows::Own(4), share, &slices);
    let all = sums(Rows::Own(4), None, &slices);
    assert!((230.0..370.0).contains(&got.rows), "{}", got.rows);
    assert_eq!((&got.low, &got.bins, got.groups), (&all.low, &all.bins, all.groups));
    let kept =
        slices.iter().flat_map(|s| (0..50).filter(|&p| keeps(share, s.place, p)).map(|p| &s.values[4 * p..][..4]));
    assert_eq!(got.sum[2], kept.map(|row| f64::from(row[2])).sum::<f64>());
}

#[test]
fn numbers_that_are_none_are_told() {
    let rows = Rows::Own(2);
    for fault in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let x = [1.0, 2.0, fault, 3.0];
        let slice = Slice { values: &x, place: place(0, 0), weight: 1.0 };
        let got = Accumulator::new(rows, None, Sums::new(&rows, 1)).push(0, &[slice]).unwrap_err();
        assert_eq!(got.to_bits(), fault.to_bits());
    }
}
