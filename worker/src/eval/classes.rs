//! Which output of the network a class means: by its place in the list of classes that the network was
//! trained on, whose order is that of the sorted training folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::data::DataError;
use crate::data::index::{Split, holds_shards};

/// Why class folders cannot be told apart as the network's outputs. One line; names the file or folder.
#[derive(Debug, thiserror::Error)]
pub enum ClassesError {
    #[error("cannot read the classes {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Shards(#[from] DataError),
    #[error(
        "{}: {reason}; expected one class a line (n01440764, or n01440764 and its name), or a JSON class index", path.display()
    )]
    Format { path: PathBuf, reason: String },
    #[error("{}: {known} classes, but the network has {outputs} outputs", path.display())]
    TooMany { path: PathBuf, known: usize, outputs: usize },
    #[error("{}: class folder {folder} is none of the {known} classes that the network knows ({first}, ...)", dir.display())]
    Unknown { dir: PathBuf, folder: String, known: usize, first: String },
    #[error("{}: class folder {folder} is a number beyond the network's {outputs} outputs", dir.display())]
    Number { dir: PathBuf, folder: String, outputs: usize },
    #[error("{}: class folders {first} and {second} mean the same class", dir.display())]
    Twice { dir: PathBuf, first: String, second: String },
    #[error(
        "{}: {folders} class folders, but the network has {outputs} outputs: say which they are with --classes FILE, \
         or with the training folders in train/ beside val/", dir.display()
    )]
    Ambiguous { dir: PathBuf, folders: usize, outputs: usize },
}

/// The classes of a network, in the order of its outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classes {
    /// Names of their folders, such as WordNet ids.
    keys: Vec<String>,
    /// What people call them; the key where nothing else is known.
    names: Vec<String>,
}

impl Classes {
    /// Reads `path`: a folder of class folders, or of shards, whose headers tell the classes; a text file with a class a line, which may have its name
    /// after a WordNet id; or a JSON class index, `{"0": ["n01440764", "tench"], ...}` or a list of names.
    ///
    /// # Errors
    /// An unreadable or empty file, a line twice, an index with gaps; shards that cannot be indexed.
    pub fn read(path: &Path) -> Result<Self, ClassesError> {
        let unreadable = |source| ClassesError::Read { path: path.to_path_buf(), source };
        if path.is_dir() {
            if holds_shards(path)? {
                return Ok(Self::from_folders(Split::open(path, None)?.classes().to_vec()));
            }
            return folders(path).map(Self::from_folders).map_err(unreadable);
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        let classes = match text.trim_start().starts_with(['{', '[']) {
            true => from_json(&text),
            false => from_lines(&text),
        };
        let classes = classes.and_then(|(keys, names)| {
            let mut seen = BTreeMap::new();
            if keys.is_empty() {
                return Err("no class in it".to_owned());
            }
            match keys.iter().enumerate().find_map(|(id, key)| Some((key, seen.insert(key, id)?, id))) {
                Some((key, first, second)) => Err(format!("{key} is class {first} and class {second}")),
                None => Ok(Self { keys, names }),
            }
        });
        classes.map_err(|reason| ClassesError::Format { path: path.to_path_buf(), reason })
    }

    /// The classes of training folders or shards, in the order of their ids.
    pub fn from_folders(folders: Vec<String>) -> Self {
        Self { names: folders.clone(), keys: folders }
    }

    /// Number of classes, at least 1 of those that were read.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Name of the folder of class `id`, below `len()`; the number itself beyond, as of an output that no
    /// class uses.
    pub fn key(&self, id: usize) -> String {
        self.keys.get(id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// What people call class `id`; the same beyond `len()`.
    pub fn name(&self, id: usize) -> String {
        self.names.get(id).cloned().unwrap_or_else(|| id.to_string())
    }

    /// Ids by key.
    pub fn by_key(&self) -> BTreeMap<&str, u32> {
        self.keys.iter().enumerate().map(|(id, key)| (key.as_str(), id as u32)).collect()
    }
}

type KeysAndNames = (Vec<String>, Vec<String>);

fn from_lines(text: &str) -> Result<KeysAndNames, String> {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let wordnet = |line: &&str| line.split_whitespace().next().is_some_and(is_wordnet_id);
    if !lines.iter().all(wordnet) {
        // Names alone, which may have spaces in them.
        let keys: Vec<String> = lines.into_iter().map(str::to_owned).collect();
        return Ok((keys.clone(), keys));
    }
    let parts = lines.into_iter().map(|line| {
        let (key, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let name = if rest.trim().is_empty() { key } else { rest.trim() };
        (key.to_owned(), name.to_owned())
    });
    Ok(parts.unzip())
}

/// `n` and eight digits.
fn is_wordnet_id(text: &str) -> bool {
    text.strip_prefix('n').is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|b| b.is_ascii_digit()))
}

fn from_json(text: &str) -> Result<KeysAndNames, String> {
    let values: Vec<Value> = match serde_json::from_str(text).map_err(|error| error.to_string())? {
        Value::Array(values) => values,
        Value::Object(mut map) => {
            let count = map.len();
            let value =
                |id: usize| map.remove(&id.to_string()).ok_or(format!("class {id} of {count} is missing"));
            (0..count).map(value).collect::<Result<_, _>>()?
        }
        _ => return Err("neither a list nor an object".to_owned()),
    };
    let pair = |(id, value): (usize, Value)| match value {
        Value::String(name) => Ok((name.clone(), name)),
        Value::Array(parts) => match parts.as_slice() {
            [Value::String(key), Value::String(name)] => Ok((key.clone(), name.clone())),
            _ => Err(format!("class {id} is not [folder, name]")),
        },
        _ => Err(format!("class {id} is neither a name nor [folder, name]")),
    };
    values.into_iter().enumerate().map(pair).collect()
}

/// The output that each of `folders`, the class folders of `dir`, means to a network of `outputs` outputs.
///
/// By the place of its name in `known`, if all of them stand there. Else, if all are numbers (ImageNetV2's 0
/// to 999), by the number, since their order as strings is another. Else by their own order, if there
/// are as many as outputs and nothing is known.
///
/// # Errors
/// Folders that mean nothing, or twice the same.
pub fn class_ids(
    dir: &Path,
    folders: &[String],
    known: Option<&Classes>,
    outputs: usize,
) -> Result<Vec<u32>, ClassesError> {
    let path = || dir.to_path_buf();
    let places = known.map(Classes::by_key).unwrap_or_default();
    let unknown = folders.iter().find(|folder| !places.contains_key(folder.as_str()));
    let ids: Vec<u32> = match (unknown, known) {
        (None, _) => folders.iter().filter_map(|folder| places.get(folder.as_str()).copied()).collect(),
        (Some(unknown), _) => match folders.iter().map(|folder| number(folder)).collect::<Option<Vec<_>>>() {
            Some(numbers) => numbers,
            None => match known {
                Some(known) => {
                    let (folder, first) = (unknown.clone(), known.key(0));
                    return Err(ClassesError::Unknown { dir: path(), folder, known: known.len(), first });
                }
                None if folders.len() == outputs => (0..outputs as u32).collect(),
                None => return Err(ClassesError::Ambiguous { dir: path(), folders: folders.len(), outputs }),
            },
        },
    };
    let mut seen = BTreeMap::new();
    for (&id, folder) in ids.iter().zip(folders) {
        if id as usize >= outputs {
            return Err(ClassesError::Number { dir: path(), folder: folder.clone(), outputs });
        }
        if let Some(first) = seen.insert(id, folder) {
            let (first, second) = (first.clone(), folder.clone());
            return Err(ClassesError::Twice { dir: path(), first, second });
        }
    }
    Ok(ids)
}

fn number(folder: &str) -> Option<u32> {
    folder.bytes().all(|byte| byte.is_ascii_digit()).then(|| folder.parse().ok()).flatten()
}

/// Names of the folders in `dir`, links to folders included, sorted, without hidden ones.
pub(super) fn folders(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        // One that is not UTF-8 is refused with its name when it is indexed.
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type()?;
        let is_folder = kind.is_dir() || kind.is_symlink() && entry.path().is_dir();
        if is_folder && !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
