//! The writer: misuse is an error, the output's name only ever shows a whole file.

use kizami_gguf::{File, Kind, TypeId, Value, Writer, parse};
use std::fs;
use std::path::Path;

fn tensors() -> Vec<(String, TypeId, Vec<u64>)> {
    vec![("a".to_owned(), TypeId::F32, vec![4, 2]), ("b".to_owned(), TypeId::Q8_0, vec![32])]
}

fn create(path: &Path) -> Writer {
    Writer::create(path, vec![("general.name".to_owned(), Value::from("x"))], &tensors()).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn misuse_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let writer = create(&dir.path().join("out.gguf"));
    let kind = |result: Result<(), kizami_gguf::Error>| result.unwrap_err().kind;
    assert!(matches!(kind(writer.write("c", &[])), Kind::UnknownTensor { .. }));
    assert!(matches!(kind(writer.write("a", &[0; 31])), Kind::WriteLength { found: 31, expected: 32, .. }));
    assert!(matches!(kind(writer.write_rows("a", 16, &[0; 17])), Kind::WriteRange { .. }));
    assert!(matches!(kind(writer.write_rows("a", u64::MAX, &[0])), Kind::WriteRange { .. }));
    writer.write_rows("a", 16, &[1; 16]).unwrap();
    assert!(matches!(kind(writer.write("a", &[0; 32])), Kind::WrittenTwice { .. }));
    writer.write("b", &[2; 34]).unwrap();
    assert!(matches!(kind(writer.write("b", &[2; 34])), Kind::WrittenTwice { .. }));
    assert!(matches!(kind(writer.finish()), Kind::Incomplete { written: 16, nbytes: 32, .. }));
    assert!(names(dir.path()).is_empty());
}

#[test]
fn layouts_that_cannot_be_read_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    let kind = |metadata, tensors: &[_]| Writer::create(&path, metadata, tensors).unwrap_err().kind;
    let twice = [tensors(), tensors()].concat();
    assert!(matches!(kind(vec![], &twice), Kind::Duplicate { .. }));
    let part = [("a".to_owned(), TypeId::Q4_K, vec![100])];
    assert!(matches!(kind(vec![], &part), Kind::RowLength { .. }));
    let huge = [("a".to_owned(), TypeId::F32, vec![u64::MAX, 2])];
    assert!(matches!(kind(vec![], &huge), Kind::Dimension { .. }));
    let flat = [("a".to_owned(), TypeId::F32, vec![])];
    assert!(matches!(kind(vec![], &flat), Kind::Rank { found: 0, .. }));
    let alignment = vec![("general.alignment".to_owned(), Value::from(24u32))];
    assert!(matches!(kind(alignment, &tensors()), Kind::Alignment { .. }));
    assert!(names(dir.path()).is_empty());
}

#[test]
fn the_name_changes_hands_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    fs::write(&path, "older").unwrap();
    let writer = create(&path);
    let listed = names(dir.path());
    assert!(listed.len() == 2 && listed.iter().any(|n| n.starts_with(".out.gguf.partial")), "{listed:?}");
    writer.write("a", &[1; 32]).unwrap();
    writer.write("b", &[2; 34]).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"older");
    writer.finish().unwrap();
    assert_eq!(names(dir.path()), ["out.gguf"]);
    assert_eq!(File::open(&path).unwrap().tensor("b").unwrap().1, [2; 34]);

    drop(create(&path));
    assert_eq!(names(dir.path()), ["out.gguf"]);
    assert!(parse(&fs::read(&path).unwrap()).is_ok());
}

#[test]
fn threads_may_write_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    let tensors: Vec<_> = (0..32).map(|i| (format!("t{i}"), TypeId::F32, vec![64, 8])).collect();
    let writer = Writer::create(&path, vec![], &tensors).unwrap();
    std::thread::scope(|scope| {
        for part in 0..4u8 {
            let writer = &writer;
            scope.spawn(move || {
                for i in (0..32).rev() {
                    writer.write_rows(&format!("t{i}"), u64::from(part) * 512, &[part + i; 512]).unwrap();
                }
            });
        }
    });
    writer.finish().unwrap();
    let file = File::open(&path).unwrap();
    for i in 0..32u8 {
        let (_, bytes) = file.tensor(&format!("t{i}")).unwrap();
        assert!(bytes.chunks(512).zip(0..).all(|(chunk, part)| chunk.iter().all(|&b| b == part + i)));
    }
}

#[test]
fn views_outlive_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    let writer = create(&path);
    writer.write("a", &[1; 32]).unwrap();
    writer.write("b", &[2; 34]).unwrap();
    writer.finish().unwrap();
    let view = File::open(&path).unwrap().view("b").unwrap();
    assert_eq!(&view[..], [2; 34]);
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let open = |path: &Path| File::open(path).unwrap_err();
    assert!(matches!(open(dir.path()).kind, Kind::NotAFile));
    let missing = dir.path().join("missing.gguf");
    let error = open(&missing);
    assert!(
        matches!(error.kind, Kind::Io { doing: "open", .. }) && error.to_string().contains("missing.gguf: ")
    );
    let empty = dir.path().join("empty.gguf");
    fs::write(&empty, "").unwrap();
    assert!(matches!(open(&empty).kind, Kind::TooShort { have: 0, .. }));

    let create = |path: &Path| Writer::create(path, vec![], &tensors()).unwrap_err().kind;
    assert!(matches!(create(dir.path()), Kind::NotAFile));
    assert!(matches!(create(&dir.path().join("no/such/out.gguf")), Kind::Io { doing: "create", .. }));
    #[cfg(unix)]
    {
        assert!(matches!(open(Path::new("/dev/null")).kind, Kind::NotAFile));
        assert!(matches!(create(Path::new("/dev/null")), Kind::NotAFile));
    }
}

#[cfg(unix)]
#[test]
fn the_output_is_as_readable_as_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.gguf");
    Writer::create(&path, vec![], &[]).unwrap().finish().unwrap();
    let ordinary = dir.path().join("ordinary");
    fs::write(&ordinary, "").unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&path), mode(&ordinary));
}
