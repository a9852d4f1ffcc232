//! The kept inputs, in every run.

use std::fs;

use causeway_fuzz::{TARGETS, directory, kept, seeds};

#[test]
fn nothing_breaks_of_what_is_kept() {
    for target in TARGETS {
        let corpus = kept("corpus", target.name).unwrap();
        assert!(corpus.len() >= 10, "{} has a corpus of {}", target.name, corpus.len());
        for (name, input) in corpus {
            eprintln!("{}: {name}", target.name);
            (target.run)(&input);
        }
    }
}

#[test]
fn what_broke_once_does_not_break_again_and_is_told_in_words() {
    let told = fs::read_to_string(directory().join("crashes/README.md")).unwrap();
    let mut known = 0;
    for target in TARGETS {
        for (name, input) in kept("crashes", target.name).unwrap() {
            let line = format!("- `{}/{name}`: ", target.name);
            assert!(
                told.lines().any(|told| told.starts_with(&line)),
                "crashes/README.md does not tell of {line}"
            );
            eprintln!("{}: {name}", target.name);
            (target.run)(&input);
            known += 1;
        }
    }
    assert_eq!(told.lines().filter(|line| line.starts_with("- `")).count(), known, "a line without its file");
}

#[test]
fn the_corpus_has_every_seed() {
    for target in TARGETS {
        let corpus = kept("corpus", target.name).unwrap();
        for (name, bytes) in seeds::of(target.name) {
            let there = corpus.iter().any(|(other, kept)| other == name && *kept == bytes);
            assert!(
                there,
                "{}/{name} is not as written: cargo run -p causeway-fuzz --example seeds",
                target.name
            );
        }
    }
}
