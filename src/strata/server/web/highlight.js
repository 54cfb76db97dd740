// Colours for code: comments, strings, numbers and words of a language, found in one pass.
//
// It is no parser: what it does not know stays plain, and the text is never changed.

import { el } from "./dom.js";

/** Code beyond which nothing is coloured: an answer that grows is looked at again and again. */
const LONGEST = 20_000;

const words = (text) => new Set(text.split(" "));
const SLASHES = String.raw`\/\/[^\n]*|\/\*[^]*?(?:\*\/|$)`;
const HASHES = String.raw`#[^\n]*`;
const DASHES = String.raw`--[^\n]*`;
const DOUBLE = String.raw`"(?:[^"\\\n]|\\[^])*(?:"|(?=\n)|$)`;
const SINGLE = String.raw`'(?:[^'\\\n]|\\[^])*(?:'|(?=\n)|$)`;
const BACKTICK = "`(?:[^`\\\\]|\\\\[^])*(?:`|$)";
const TRIPLE = String.raw`"""[^]*?(?:"""|$)|'''[^]*?(?:'''|$)`;
const STRINGS = `${DOUBLE}|${SINGLE}`;

const C = words(
  "auto bool break case char class const constexpr continue default delete do double else enum " +
    "explicit extern false float for friend goto if inline int long namespace new noexcept " +
    "nullptr operator override private protected public return short signed sizeof static struct " +
    "switch template this throw true try catch typedef typename union unsigned using virtual void " +
    "volatile while include define ifdef ifndef endif pragma",
);
const SCRIPT = words(
  "abstract any as async await boolean break case catch class const continue debugger declare " +
    "default delete do else enum export extends false finally for from function if implements " +
    "import in infer instanceof interface keyof let namespace never new null number object of " +
    "private protected public readonly return static string super switch this throw true try type " +
    "typeof undefined unknown var void while with yield",
);
const JAVA = words(
  "abstract as boolean break byte case catch char class companion const continue data default do " +
    "double else enum extends false final finally float for fun if implements import in init " +
    "instanceof int interface internal is lateinit let long namespace new null object open out " +
    "override package private protected public readonly record ref return sealed short static " +
    "string super switch this throw throws true try using val var virtual void volatile when where " +
    "while yield guard func struct protocol extension nil self def trait match given async await",
);
const PYTHON = words(
  "False None True and as assert async await break case class continue def del elif else except " +
    "finally for from global if import in is lambda match nonlocal not or pass raise return self " +
    "try while with yield",
);
const RUBY = words(
  "alias and begin break case class def defined do else elsif end ensure false for if in module " +
    "next nil not or redo require rescue retry return self super then true undef unless until when " +
    "while yield function library use my our sub local",
);
const SHELL = words(
  "alias case cd declare do done echo elif else esac eval exec exit export fi for function if in " +
    "local printf read return select set shift source sudo test then trap unset until while FROM " +
    "RUN COPY CMD ENTRYPOINT ENV WORKDIR EXPOSE ARG USER VOLUME",
);
const RUST = words(
  "as async await bool box break char const continue crate dyn else enum extern f32 f64 false fn " +
    "for i8 i16 i32 i64 i128 if impl in isize let loop match mod move mut pub ref return self Self " +
    "static str struct super trait true type u8 u16 u32 u64 u128 union unsafe use usize where while",
);
const GO = words(
  "any bool break byte case chan const continue default defer else error fallthrough false float32 " +
    "float64 for func go goto if import int int32 int64 interface iota make map new nil package " +
    "range return rune select string struct switch true type uint var",
);
const SQL = words(
  "add all alter and as asc between by case column constraint create cross database default delete " +
    "desc distinct drop else end exists false foreign from full group having if in index inner " +
    "insert into is join key left like limit not null on or order outer primary references right " +
    "select set table then true union unique update values view when where with",
);
const LUA = words(
  "and break do else elseif end false for function goto if in local nil not or repeat return then " +
    "true until while module where data type instance class let of case deriving import",
);
const VALUES = words("true false null yes no on off none nil True False None inf nan");

/** For each family: its comments, its strings, its words, and whether these have any case. */
const FAMILIES = [
  ["c h cpp c++ cc hpp cuda cu objc glsl arduino", SLASHES, STRINGS, C],
  ["js javascript jsx ts typescript tsx mjs vue svelte", SLASHES, `${STRINGS}|${BACKTICK}`, SCRIPT],
  ["java kotlin kt cs csharp c# scala swift dart groovy php", SLASHES, STRINGS, JAVA],
  ["go golang", SLASHES, `${STRINGS}|${BACKTICK}`, GO],
  // A quote may begin the name of a lifetime.
  ["rust rs", SLASHES, `${DOUBLE}|'(?:[^'\\\\\\n]|\\\\.)'`, RUST],
  ["py python python3 ipython sage", HASHES, `${TRIPLE}|${STRINGS}`, PYTHON],
  ["rb ruby perl pl r julia jl elixir ex", HASHES, STRINGS, RUBY],
  ["sh bash zsh shell console fish dockerfile docker make makefile powershell ps1", HASHES, STRINGS, SHELL],
  ["yaml yml toml ini conf cfg env properties", `[#;][^\\n]*`, STRINGS, VALUES],
  ["sql mysql postgresql sqlite", `${DASHES}|${SLASHES}`, STRINGS, SQL, true],
  ["lua haskell hs elm ada", DASHES, STRINGS, LUA],
  ["json jsonc json5 jsonl", SLASHES, DOUBLE, VALUES],
  ["css scss less", SLASHES, STRINGS, words("important media import keyframes supports layer")],
  ["html xml svg xhtml", String.raw`<!--[^]*?(?:-->|$)`, STRINGS, new Set()],
];

const NUMBER = String.raw`\b0[xX][\da-fA-F_]+\b|\b\d[\d_]*(?:\.\d+)?(?:[eE][+-]?\d+)?`;
const WORD = String.raw`[\p{L}_$][\p{L}\p{N}_$]*`;
const TAG = String.raw`<\/?[a-zA-Z][\w:-]*|\/?>`;

const LANGUAGES = new Map();
for (const [names, comment, string, known, anyCase = false] of FAMILIES) {
  const tag = names.startsWith("html") ? `(${TAG})` : "($^)";
  const pattern = new RegExp(`(${comment})|(${string})|${tag}|(${NUMBER})|(${WORD})`, "gu");
  for (const name of names.split(" ")) LANGUAGES.set(name, { pattern, known, anyCase });
}

/** Nodes of a code's text, which they add up to. */
export function highlight(text, language) {
  const found = LANGUAGES.get(language.toLowerCase());
  if (found === undefined || text.length > LONGEST) {
    return language.toLowerCase() === "diff" ? changes(text) : [text];
  }
  const nodes = [];
  let done = 0;
  for (const match of text.matchAll(found.pattern)) {
    const kind = kindOf(match, found);
    if (kind === null) continue;
    if (match.index > done) nodes.push(text.slice(done, match.index));
    nodes.push(el("span", { class: `code-${kind}` }, match[0]));
    done = match.index + match[0].length;
  }
  if (done < text.length) nodes.push(text.slice(done));
  return nodes;
}

function kindOf([, comment, string, tag, number, word], { known, anyCase }) {
  if (comment !== undefined) return "comment";
  if (string !== undefined) return "string";
  if (number !== undefined) return "number";
  if (tag !== undefined) return "word";
  return known.has(anyCase ? word.toLowerCase() : word) ? "word" : null;
}

/** Lines that were added and taken away. */
function changes(text) {
  const kinds = { "+": "string", "-": "removed", "@": "comment" };
  return text.split(/(?<=\n)/).map((line) => {
    const kind = kinds[line[0]];
    return kind ? el("span", { class: `code-${kind}` }, line) : line;
  });
}
