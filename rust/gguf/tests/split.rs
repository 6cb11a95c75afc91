//! Split sets open as one file, or say which shard is wrong.

use kizami_gguf::{Error, File, Kind, TypeId, Value, Writer};
use std::path::{Path, PathBuf};

/// What one shard of a set says about itself.
struct Shard {
    no: u16,
    count: u16,
    total: i32,
    extra: Vec<(&'static str, Value)>,
    tensor: &'static str,
}

/// The shards of a set of three that is in order.
fn good() -> [Shard; 3] {
    let arch = ("general.architecture", Value::from("deepseek2"));
    let shard = |no, tensor, extra| Shard { no, count: 3, total: 3, extra, tensor };
    [shard(0, "a", vec![arch.clone()]), shard(1, "b", vec![]), shard(2, "c", vec![arch])]
}

fn path(dir: &Path, no: usize) -> PathBuf {
    dir.join(format!("m-{:05}-of-00003.gguf", no + 1))
}

fn write(path: &Path, shard: &Shard) {
    let mut metadata = vec![
        ("split.no".to_owned(), Value::from(shard.no)),
        ("split.count".to_owned(), Value::from(shard.count)),
        ("split.tensors.count".to_owned(), Value::from(shard.total)),
    ];
    metadata.extend(shard.extra.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    let writer = Writer::create(path, metadata, &[(shard.tensor.to_owned(), TypeId::I8, vec![3])]).unwrap();
    writer.write(shard.tensor, &[shard.no as u8; 3]).unwrap();
    writer.finish().unwrap();
}

/// Writes a good set with one change and opens its first shard.
fn open(change: impl FnOnce(&mut [Shard; 3])) -> Result<File, Error> {
    let dir = tempfile::tempdir().unwrap();
    let mut shards = good();
    change(&mut shards);
    for (no, shard) in shards.iter().enumerate() {
        write(&path(dir.path(), no), shard);
    }
    File::open(path(dir.path(), 0))
}

#[test]
fn a_set_opens_as_one_file() {
    let file = open(|_| ()).unwrap();
    assert_eq!(file.shards().len(), 3);
    let keys: Vec<_> = file.header().metadata().iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["general.architecture"]);
    for (no, name) in ["a", "b", "c"].iter().enumerate() {
        assert_eq!(file.tensor(name).unwrap().1, [no as u8; 3]);
        assert_eq!(&file.view(name).unwrap()[..], [no as u8; 3]);
    }
}

#[test]
fn a_first_shard_without_tensors_is_common() {
    let dir = tempfile::tempdir().unwrap();
    let keys = |no: u16| {
        let pairs =
            [("split.no", no.into()), ("split.count", 2u16.into()), ("split.tensors.count", 1i32.into())];
        pairs.map(|(key, value): (&str, Value)| (key.to_owned(), value)).to_vec()
    };
    let first = dir.path().join("m-00001-of-00002.gguf");
    Writer::create(&first, keys(0), &[]).unwrap().finish().unwrap();
    let second = dir.path().join("m-00002-of-00002.gguf");
    let writer = Writer::create(second, keys(1), &[("a".to_owned(), TypeId::I8, vec![1])]).unwrap();
    writer.write("a", &[7]).unwrap();
    writer.finish().unwrap();
    assert_eq!(File::open(first).unwrap().tensor("a").unwrap().1, [7]);
}

#[test]
fn counts_of_zero_and_one_mean_a_whole_file() {
    for count in [0, 1] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("merged.gguf");
        write(&path, &Shard { no: 0, count, total: 1, extra: vec![], tensor: "a" });
        assert_eq!(File::open(path).unwrap().shards().len(), 1);
    }
}

#[test]
fn damaged_sets_are_refused() {
    macro_rules! refused {
        ($($change:expr => $shard:literal, $pattern:pat $(if $guard:expr)?,)*) => {$({
            let error = open($change).unwrap_err();
            let name = format!("m-{:05}-of-00003.gguf", $shard);
            assert_eq!(error.path.file_name().unwrap().to_str(), Some(name.as_str()), "{error}");
            assert!(matches!(&error.kind, $pattern $(if $guard)?), "{error}");
        })*};
    }
    refused! {
        |s: &mut [Shard; 3]| s[0].no = 1 => 1, Kind::NotFirstShard { no: 1, count: 3 },
        |s: &mut [Shard; 3]| s[0].count = 4 => 1, Kind::ShardName { expected } if expected == "-00001-of-00004.gguf",
        |s: &mut [Shard; 3]| s[1].no = 2 => 2, Kind::ShardKey { key, .. } if key == "split.no",
        |s: &mut [Shard; 3]| s[2].count = 2 => 3, Kind::ShardKey { key, .. } if key == "split.count",
        |s: &mut [Shard; 3]| s[2].total = 4 => 3, Kind::ShardKey { key, .. } if key == "split.tensors.count",
        |s: &mut [Shard; 3]| s.iter_mut().for_each(|s| s.total = 4) => 1, Kind::ShardKey { found, .. } if found == "4",
        |s: &mut [Shard; 3]| s[0].total = -1 => 1, Kind::ShardKey { found, .. } if found == "-1",
        |s: &mut [Shard; 3]| s[2].tensor = "a" => 3, Kind::ShardTensor { tensor } if tensor == "a",
        |s: &mut [Shard; 3]| s[2].extra[0].1 = Value::from("llama") => 3, Kind::ShardKey { key, .. } if key == "general.architecture",
    }
}

#[test]
fn missing_empty_and_wrong_shards_are_named() {
    let dir = tempfile::tempdir().unwrap();
    for (no, shard) in good().iter().enumerate() {
        write(&path(dir.path(), no), shard);
    }
    let second = path(dir.path(), 1);
    assert!(matches!(File::open(&second).unwrap_err().kind, Kind::NotFirstShard { no: 1, count: 3 }));
    std::fs::remove_file(&second).unwrap();
    let error = File::open(path(dir.path(), 0)).unwrap_err();
    assert!(matches!(error.kind, Kind::ShardMissing { no: 1, count: 3 }) && error.path == second);
    std::fs::write(&second, "").unwrap();
    let error = File::open(path(dir.path(), 0)).unwrap_err();
    assert!(matches!(error.kind, Kind::TooShort { have: 0, .. }) && error.path == second);
    let writer = Writer::create(&second, vec![], &[]).unwrap();
    writer.finish().unwrap();
    let error = File::open(path(dir.path(), 0)).unwrap_err();
    assert!(matches!(&error.kind, Kind::ShardKey { found, .. } if found == "nothing"), "{error}");
}
