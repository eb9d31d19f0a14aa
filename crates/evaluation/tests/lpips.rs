//! LPIPS against the package of its authors; see fixtures/make_lpips.py.

mod formula;

use aquatint_evaluation::network::Lpips;
use formula::{Formula, picture};
use serde_json::Value;
use std::path::Path;

/// Distances are sums of squared differences of vectors of length 1 in f32: each is off by some 1e-7, and for the second pair, which
/// differs by a tenth, the distance is a hundredth: 1e-5 of it.
#[test]
fn distances_are_those_of_the_package() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lpips.json");
    let expected: Value = serde_json::from_slice(&std::fs::read(path).expect("the fixture")).expect("JSON");
    for (net, without) in [("alex", &["net.slice1.0.weight"][..]), ("vgg", &["net.slice1.0.weight", ".3.weight"])] {
        let lpips = Lpips::new(&Formula(without), &Formula(&[])).expect("all tensors");
        assert_eq!(lpips.name(), net);
        for (i, size) in [[64, 64], [67, 93]].into_iter().enumerate() {
            let read = |which, block| -> Vec<f32> {
                picture(&format!("lpips_{i}_{which}"), size, block).iter().map(|v| v / 255.0).collect()
            };
            let (a, b) = (read("a", 4), read("b", 7));
            let near: Vec<f32> = a.iter().zip(&b).map(|(a, b)| 0.9 * a + 0.1 * b).collect();
            let seen = lpips.see(&a, size);
            for (k, other) in [&b, &near, &a].into_iter().enumerate() {
                let got = lpips.distance(&seen, &lpips.see(other, size));
                let expected = expected[net][i][k].as_f64().expect("a number");
                assert!(
                    (got - expected).abs() <= 1e-5 * expected,
                    "{net}, pair {k} of {size:?}: {got} is not {expected}"
                );
            }
        }
    }
}
