//! Which file of a crate imports which, read from its `use` lines and paths.
//!
//! - A module and those below it are one: that `core` uses `core::open`, and `core::open` what `core`
//!   itself defines, is no circle. So says the language too: a module sees what those above it hide.
//! - What a module only passes on (`pub use`) counts as imported from where it is defined. No circle
//!   hides behind a module above.
//! - `mod name;` and `pub use` of something below are no imports.
//! - Code for tests alone (`#[cfg(test)]`) does not count; all other features do.

use proc_macro2::{TokenStream, TokenTree};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use syn::visit::{self, Visit};

/// The files of one crate, and each import of one by another.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    /// From a file to those that it imports, with what it names of them. Files are named by their
    /// module: `crate::core::open`.
    imports: BTreeMap<String, BTreeMap<String, String>>,
}

impl Graph {
    /// Reads a crate from its root file and those that it declares by `mod`. `read` gives a file's
    /// text, or `None` if there is no such file.
    pub(crate) fn read(root: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Self {
        let mut tree = Tree::default();
        let folder = root.parent().unwrap_or(Path::new(""));
        tree.file(None, "crate", root, folder, read);
        tree.graph()
    }

    /// Takes out an import.
    pub(crate) fn remove(&mut self, from: &str, to: &str) {
        if let Some(imports) = self.imports.get_mut(from) {
            imports.remove(to);
        }
    }

    /// Each import: from, to.
    pub(crate) fn imports(&self) -> impl Iterator<Item = (&str, &str)> {
        self.imports
            .iter()
            .flat_map(|(from, all)| all.keys().map(move |to| (from.as_str(), to.as_str())))
    }

    /// Whether one file uses another, directly or by way of others.
    pub(crate) fn reaches(&self, from: &str, to: &str) -> bool {
        let mut seen = BTreeSet::from([from]);
        let mut queue = vec![from];
        while let Some(at) = queue.pop() {
            for next in self.imports.get(at).into_iter().flat_map(BTreeMap::keys) {
                if next == to {
                    return true;
                }
                if seen.insert(next) {
                    queue.push(next);
                }
            }
        }
        false
    }

    /// The shortest circle, as a list of imports: `a uses b (b::Thing)`.
    pub(crate) fn circle(&self) -> Option<Vec<String>> {
        let circles = self.imports.keys().filter_map(|start| self.way_back(start));
        circles.min_by_key(Vec::len)
    }

    /// The shortest way from a file back to itself: breadth first.
    fn way_back(&self, start: &str) -> Option<Vec<String>> {
        let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut queue = VecDeque::from([start]);
        while let Some(at) = queue.pop_front() {
            for to in self.imports.get(at).into_iter().flat_map(BTreeMap::keys) {
                if to == start {
                    let mut way = vec![self.describe(at, start)];
                    let mut at = at;
                    while at != start {
                        let before = came_from.get(at)?;
                        way.push(self.describe(before, at));
                        at = before;
                    }
                    way.reverse();
                    return Some(way);
                }
                if !came_from.contains_key(to.as_str()) {
                    came_from.insert(to, at);
                    queue.push_back(to);
                }
            }
        }
        None
    }

    fn describe(&self, from: &str, to: &str) -> String {
        let named = self.imports.get(from).and_then(|all| all.get(to));
        format!("{from} uses {to} ({})", named.map_or("", String::as_str))
    }
}

/// A module: a file, or a part of one in braces.
#[derive(Debug)]
struct Module {
    parent: Option<usize>,
    /// The module that its file is: `crate::core::open`.
    file: String,
    children: BTreeMap<String, usize>,
    /// What it defines beside modules.
    items: BTreeSet<String>,
    uses: Vec<Import>,
    /// Paths in its code.
    paths: Vec<Vec<String>>,
}

#[derive(Debug, Clone)]
struct Import {
    path: Vec<String>,
    /// By which it is known here; `None` for a glob.
    name: Option<String>,
}

#[derive(Debug, Default)]
struct Tree {
    modules: Vec<Module>,
}

impl Tree {
    fn file(
        &mut self,
        parent: Option<usize>,
        name: &str,
        path: &Path,
        folder: &Path,
        read: &dyn Fn(&Path) -> Option<String>,
    ) -> usize {
        let text = read(path).unwrap_or_else(|| panic!("{}: cannot be read", path.display()));
        let file = syn::parse_file(&text).unwrap_or_else(|it| panic!("{}: {it}", path.display()));
        let name = match parent {
            Some(parent) => format!("{}::{name}", self.modules[parent].file),
            None => name.to_owned(),
        };
        let module = self.module(parent, name);
        self.items(module, &file.items, folder, read);
        module
    }

    fn module(&mut self, parent: Option<usize>, file: String) -> usize {
        self.modules.push(Module {
            parent,
            file,
            children: BTreeMap::new(),
            items: BTreeSet::new(),
            uses: Vec::new(),
            paths: Vec::new(),
        });
        self.modules.len() - 1
    }

    /// `folder` is where the files of this module's own modules are.
    fn items(
        &mut self,
        module: usize,
        items: &[syn::Item],
        folder: &Path,
        read: &dyn Fn(&Path) -> Option<String>,
    ) {
        for item in items {
            if is_test(attributes(item)) {
                continue;
            }
            if let Some(name) = name(item) {
                self.modules[module].items.insert(name);
            }
            match item {
                syn::Item::Mod(declared) => {
                    let name = declared.ident.to_string();
                    let below = folder.join(&name);
                    let child = if let Some((_, items)) = &declared.content {
                        let file = self.modules[module].file.clone();
                        let child = self.module(Some(module), file);
                        self.items(child, items, &below, read);
                        child
                    } else {
                        let path = file_of(declared, folder, read);
                        self.file(Some(module), &name, &path, &below, read)
                    };
                    self.modules[module].children.insert(name, child);
                }
                syn::Item::Use(import) => {
                    let uses = &mut self.modules[module].uses;
                    imports(&import.tree, &mut Vec::new(), uses);
                }
                other => {
                    let mut collector = Collector::default();
                    collector.visit_item(other);
                    self.modules[module].paths.append(&mut collector.paths);
                    self.modules[module].uses.append(&mut collector.uses);
                }
            }
        }
    }

    fn graph(&self) -> Graph {
        let mut graph = Graph::default();
        let mut add = |from: usize, to: usize, path: &[String]| {
            let (from, to) = (&self.modules[from].file, &self.modules[to].file);
            let is_part_of = |part: &str, whole: &str| {
                part.strip_prefix(whole)
                    .is_some_and(|it| it.is_empty() || it.starts_with("::"))
            };
            if !is_part_of(from, to) && !is_part_of(to, from) {
                let imports = graph.imports.entry(from.clone()).or_default();
                imports.entry(to.clone()).or_insert_with(|| path.join("::"));
            }
        };
        for (index, module) in self.modules.iter().enumerate() {
            for import in &module.uses {
                let Some(to) = self.definer(index, &import.path, 0) else {
                    continue;
                };
                add(index, to, &import.path);
            }
            for path in &module.paths {
                if let Some(to) = self.definer(index, path, 0) {
                    add(index, to, path);
                }
            }
        }
        graph
    }

    /// The module that defines what the path names, seen from a module. `None` if it is no path of
    /// this crate.
    fn definer(&self, from: usize, path: &[String], depth: usize) -> Option<usize> {
        if depth > 16 {
            return None;
        }
        let (first, mut rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => 0,
            "self" => from,
            "super" => self.modules[from].parent?,
            name => {
                rest = path;
                // A name without a prefix is a module's own part, or another crate's.
                self.modules[from].children.get(name)?;
                from
            }
        };
        while let Some((name, after)) = rest.split_first() {
            if name == "super" {
                at = self.modules[at].parent?;
            } else if let Some(child) = self.modules[at].children.get(name) {
                at = *child;
            } else if name != "self" {
                return Some(self.item_definer(at, name, depth).unwrap_or(at));
            }
            rest = after;
        }
        Some(at)
    }

    /// Follows what a module only passes on to where it is defined.
    fn item_definer(&self, module: usize, name: &str, depth: usize) -> Option<usize> {
        let module_ = &self.modules[module];
        if module_.items.contains(name) {
            return Some(module);
        }
        let named = module_
            .uses
            .iter()
            .filter(|it| it.name.as_deref() == Some(name));
        let named = named.filter_map(|it| self.definer(module, &it.path, depth + 1));
        let globs = module_.uses.iter().filter(|it| it.name.is_none());
        let globs = globs.filter_map(|it| {
            let to = self.definer(module, &it.path, depth + 1)?;
            (to != module).then(|| self.item_definer(to, name, depth + 1))?
        });
        named.chain(globs).next()
    }
}

/// Collects paths, also those in the arguments of macros.
#[derive(Debug, Default)]
struct Collector {
    paths: Vec<Vec<String>>,
    uses: Vec<Import>,
}

impl<'ast> Visit<'ast> for Collector {
    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter().map(|it| it.ident.to_string());
        self.paths.push(segments.collect());
        visit::visit_path(self, path);
    }

    /// `pub(super)` is no import.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_item_use(&mut self, import: &'ast syn::ItemUse) {
        imports(&import.tree, &mut Vec::new(), &mut self.uses);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.visit_path(&call.path);
        self.tokens(call.tokens.clone());
    }
}

impl Collector {
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 && !path.is_empty() {
                        self.paths.push(std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' && !path.is_empty() => {
                    colons += 1;
                }
                other => {
                    if !path.is_empty() {
                        self.paths.push(std::mem::take(&mut path));
                    }
                    colons = 0;
                    if let TokenTree::Group(group) = other {
                        self.tokens(group.stream());
                    }
                }
            }
        }
        if !path.is_empty() {
            self.paths.push(path);
        }
    }
}

fn imports(tree: &syn::UseTree, path: &mut Vec<String>, all: &mut Vec<Import>) {
    let mut add = |path: Vec<String>, name: Option<String>| {
        all.push(Import { path, name });
    };
    match tree {
        syn::UseTree::Path(it) => {
            path.push(it.ident.to_string());
            imports(&it.tree, path, all);
            path.pop();
        }
        syn::UseTree::Name(it) => {
            let name = it.ident.to_string();
            let known_as = if name == "self" {
                path.last()
            } else {
                Some(&name)
            };
            let known_as = known_as.cloned();
            let full = path.iter().cloned().chain([name]).collect();
            add(full, known_as);
        }
        syn::UseTree::Rename(it) => {
            let full = path.iter().cloned().chain([it.ident.to_string()]).collect();
            add(full, Some(it.rename.to_string()));
        }
        syn::UseTree::Glob(_) => add(path.clone(), None),
        syn::UseTree::Group(group) => {
            for tree in &group.items {
                imports(tree, path, all);
            }
        }
    }
}

/// The file that a `mod name;` declares.
fn file_of(
    declared: &syn::ItemMod,
    folder: &Path,
    read: &dyn Fn(&Path) -> Option<String>,
) -> PathBuf {
    let name = declared.ident.to_string();
    let given = declared.attrs.iter().find_map(|attribute| {
        let syn::Meta::NameValue(it) = &attribute.meta else {
            return None;
        };
        let syn::Expr::Lit(syn::ExprLit {
            lit: syn::Lit::Str(text),
            ..
        }) = &it.value
        else {
            return None;
        };
        it.path.is_ident("path").then(|| folder.join(text.value()))
    });
    given.unwrap_or_else(|| {
        let flat = folder.join(format!("{name}.rs"));
        if read(&flat).is_some() {
            flat
        } else {
            folder.join(name).join("mod.rs")
        }
    })
}

/// Whether it is compiled for tests alone. What a test uses is no part of the program's order.
fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else {
            return false;
        };
        list.path.is_ident("cfg") && list.tokens.to_string() == "test"
    })
}

fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(it) => &it.attrs,
        syn::Item::Enum(it) => &it.attrs,
        syn::Item::Fn(it) => &it.attrs,
        syn::Item::Impl(it) => &it.attrs,
        syn::Item::Macro(it) => &it.attrs,
        syn::Item::Mod(it) => &it.attrs,
        syn::Item::Static(it) => &it.attrs,
        syn::Item::Struct(it) => &it.attrs,
        syn::Item::Trait(it) => &it.attrs,
        syn::Item::Type(it) => &it.attrs,
        syn::Item::Use(it) => &it.attrs,
        _ => &[],
    }
}

/// The name of what is defined, unless it is a module.
fn name(item: &syn::Item) -> Option<String> {
    let ident = match item {
        syn::Item::Const(it) => &it.ident,
        syn::Item::Enum(it) => &it.ident,
        syn::Item::Fn(it) => &it.sig.ident,
        syn::Item::Macro(it) => it.ident.as_ref()?,
        syn::Item::Static(it) => &it.ident,
        syn::Item::Struct(it) => &it.ident,
        syn::Item::Trait(it) => &it.ident,
        syn::Item::Type(it) => &it.ident,
        syn::Item::Union(it) => &it.ident,
        _ => return None,
    };
    Some(ident.to_string())
}
