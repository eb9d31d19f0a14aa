//! Names of classes mean what they do in diffusers' DiTPipeline. The fixture and its maker are in `tests/fixtures/text`.

use aquatint::model::Classes;
use serde_json::Value;
use std::collections::BTreeMap;

fn fixture() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/text/words.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect(path)).expect(path)
}

fn names(fixture: &Value) -> BTreeMap<u32, String> {
    serde_json::from_value(fixture["id2label"].clone()).expect("names by number")
}

#[test]
fn names_and_their_synonyms_are_those_of_diffusers() {
    let fixture = fixture();
    let names = names(&fixture);
    let classes = Classes { count: 10, null: 10, names: &names };
    let labels = fixture["labels"].as_array().expect("labels");
    assert!(labels.len() > 10);
    for entry in labels {
        let (name, want) = (entry[0].as_str().expect("a name"), entry[1].as_u64().expect("a label") as u32);
        assert_eq!(classes.label(name).expect(name), want, "{name}");
        assert_eq!(classes.labels(name).expect(name), [want], "{name}");
    }
    // Beyond diffusers: whole names, any case, numbers.
    for (label, name) in names.iter().filter(|(label, _)| !matches!(label, 1 | 4)) {
        assert_eq!(classes.label(name).expect(name), *label, "{name}");
        assert!(classes.label(&name.to_uppercase()).is_ok(), "{name}");
        assert_eq!(classes.labels(name).expect(name), [*label], "{name}");
    }
    assert_eq!(classes.label("White Shark").expect("in any case"), 2);
    assert_eq!(
        (classes.label("Kite").unwrap(), classes.label("kite").unwrap(), classes.label("KITE").unwrap()),
        (9, 8, 9)
    );
    assert_eq!((classes.label(" 4 ").unwrap(), classes.label("10").unwrap()), (4, 10));
    let text = classes.label("sparrow").expect_err("no such class").to_string();
    assert!(text.contains("`sparrow`") && text.contains("great white shark, crane") && text.len() < 200, "{text}");
}

#[test]
fn the_last_of_equal_names_is_that_of_numbers_sorted_as_texts() {
    // As diffusers saves them: "10" comes before "9".
    let names = BTreeMap::from([(9, "crane".to_owned()), (10, "crane".to_owned())]);
    assert_eq!(Classes { count: 11, null: 11, names: &names }.label("crane").expect("a name"), 9);
}

#[test]
fn lists_hold_names_with_commas() {
    let fixture = fixture();
    let names = names(&fixture);
    let classes = Classes { count: 10, null: 10, names: &names };
    let shark = &names[&2];
    for (list, want) in [
        ("2,4", vec![2, 4]),
        (" umbrella , crane", vec![5, 3]),
        (shark, vec![2]),
        (&format!("4, {shark}, umbrella"), vec![4, 2, 5]),
        (&format!("{shark},{shark}"), vec![2, 2]),
        // Not the whole name: synonyms, one by one.
        ("great white shark, white shark", vec![2, 2]),
        ("maillot, tank suit", vec![7]),
        ("maillot", vec![7]),
        ("tool kit, carpenter's kit", vec![6, 6]),
        ("Carpenter's Kit, Tool Kit, 1", vec![6, 1]),
    ] {
        assert_eq!(classes.labels(list).expect(list), want, "{list}");
    }
    for wrong in ["umbrella,,crane", "umbrella,", "", "umbrella, sparrow"] {
        assert!(classes.labels(wrong).is_err(), "{wrong:?}");
    }
}
