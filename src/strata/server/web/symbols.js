// What commands of TeX stand for.

const pairs = (text) =>
  Object.fromEntries(
    text
      .trim()
      .split(/\s+/)
      .map((pair) => pair.split("=")),
  );

export const LETTERS = pairs(`
  alpha=α beta=β gamma=γ delta=δ epsilon=ϵ varepsilon=ε zeta=ζ eta=η theta=θ vartheta=ϑ iota=ι
  kappa=κ lambda=λ mu=μ nu=ν xi=ξ omicron=ο pi=π varpi=ϖ rho=ρ varrho=ϱ sigma=σ varsigma=ς tau=τ
  upsilon=υ phi=ϕ varphi=φ chi=χ psi=ψ omega=ω Gamma=Γ Delta=Δ Theta=Θ Lambda=Λ Xi=Ξ Pi=Π Sigma=Σ
  Upsilon=Υ Phi=Φ Psi=Ψ Omega=Ω infty=∞ partial=∂ nabla=∇ hbar=ℏ ell=ℓ Re=ℜ Im=ℑ aleph=ℵ wp=℘
  emptyset=∅ varnothing=∅ imath=ı jmath=ȷ degree=° angle=∠ top=⊤ bot=⊥ dots=… ldots=… cdots=⋯
  vdots=⋮ ddots=⋱ prime=′ square=□ blacksquare=■ triangle=△ checkmark=✓ dagger=†
`);

export const SYMBOLS = pairs(`
  times=× cdot=⋅ div=÷ pm=± mp=∓ ast=∗ star=⋆ circ=∘ bullet=∙ oplus=⊕ otimes=⊗ ominus=⊖ odot=⊙
  cap=∩ cup=∪ setminus=∖ wedge=∧ land=∧ vee=∨ lor=∨ neg=¬ lnot=¬ leq=≤ le=≤ geq=≥ ge=≥ neq=≠ ne=≠
  ll=≪ gg=≫ equiv=≡ approx=≈ sim=∼ simeq=≃ cong=≅ propto=∝ prec=≺ succ=≻ in=∈ notin=∉ ni=∋
  subset=⊂ supset=⊃ subseteq=⊆ supseteq=⊇ subsetneq=⊊ forall=∀ exists=∃ nexists=∄ to=→
  rightarrow=→ leftarrow=← gets=← leftrightarrow=↔ Rightarrow=⇒ implies=⟹ Leftarrow=⇐ impliedby=⟸
  Leftrightarrow=⇔ iff=⟺ longrightarrow=⟶ longleftarrow=⟵ mapsto=↦ uparrow=↑ downarrow=↓ nearrow=↗
  searrow=↘ rightleftharpoons=⇌ hookrightarrow=↪ mid=∣ nmid=∤ parallel=∥ perp=⊥ models=⊨ vdash=⊢
  therefore=∴ because=∵ colon=: lbrace={ rbrace=} {={ }=} |=‖ Vert=‖ vert=| lvert=| rvert=|
  lVert=‖ rVert=‖ langle=⟨ rangle=⟩ lceil=⌈ rceil=⌉ lfloor=⌊ rfloor=⌋ %=% $=$ &=& #=# _=_ lbrack=[
  rbrack=] backslash=\\ lt=< gt=> triangleq=≜ doteq=≐ asymp=≍ coloneqq=≔ diamond=⋄ bowtie=⋈
`);

export const BIG = pairs(`
  sum=∑ prod=∏ coprod=∐ int=∫ iint=∬ iiint=∭ oint=∮ bigcup=⋃ bigcap=⋂ bigoplus=⨁ bigotimes=⨂
  bigvee=⋁ bigwedge=⋀ bigsqcup=⨆
`);

export const DELIMITERS = {
  "\\{": "{",
  "\\}": "}",
  "\\|": "‖",
  "\\lbrace": "{",
  "\\rbrace": "}",
  "\\langle": "⟨",
  "\\rangle": "⟩",
  "\\lceil": "⌈",
  "\\rceil": "⌉",
  "\\lfloor": "⌊",
  "\\rfloor": "⌋",
  "\\vert": "|",
  "\\lvert": "|",
  "\\rvert": "|",
  "\\Vert": "‖",
  "\\lVert": "‖",
  "\\rVert": "‖",
  "<": "⟨",
  ">": "⟩",
};

export const FUNCTIONS = new Set(
  (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth log ln lg exp lim limsup " +
    "liminf max min sup inf det dim ker deg gcd arg hom Pr bmod mod"
  ).split(" "),
);

export const SPACES = {
  ",": "0.17em",
  ":": "0.22em",
  ">": "0.22em",
  ";": "0.28em",
  "!": "-0.17em",
  " ": "0.33em",
  quad: "1em",
  qquad: "2em",
  enspace: "0.5em",
  thinspace: "0.17em",
};

/** The mark of each, and whether it stands below. */
export const ACCENTS = {
  hat: ["^", false],
  widehat: ["^", false],
  bar: ["¯", false],
  overline: ["¯", false],
  underline: ["_", true],
  vec: ["→", false],
  overrightarrow: ["→", false],
  tilde: ["~", false],
  widetilde: ["~", false],
  dot: ["˙", false],
  ddot: ["¨", false],
  check: ["ˇ", false],
  overbrace: ["⏞", false],
  underbrace: ["⏟", true],
};

/** A character of another alphabet; `rest` are those that have places of their own. */
function alphabet(upper, lower, digit, rest = {}) {
  return (char) => {
    if (Object.hasOwn(rest, char)) return rest[char];
    const code = char.codePointAt(0);
    const shifted = (first, start) => String.fromCodePoint(start + code - first);
    if (char >= "A" && char <= "Z") return shifted(0x41, upper);
    if (lower && char >= "a" && char <= "z") return shifted(0x61, lower);
    if (digit && char >= "0" && char <= "9") return shifted(0x30, digit);
    return char;
  };
}

const BOLD = alphabet(0x1d400, 0x1d41a, 0x1d7ce);
const DOUBLE = alphabet(0x1d538, 0x1d552, 0x1d7d8, pairs("C=ℂ H=ℍ N=ℕ P=ℙ Q=ℚ R=ℝ Z=ℤ"));
const SCRIPT = alphabet(0x1d49c, 0, 0, pairs("B=ℬ E=ℰ F=ℱ H=ℋ I=ℐ L=ℒ M=ℳ R=ℛ"));
const FRAKTUR = alphabet(0x1d504, 0x1d51e, 0, pairs("C=ℭ H=ℌ I=ℑ R=ℜ Z=ℨ"));

/** How an argument is written: a function of each character, as text, or upright. */
export const STYLES = {
  mathbf: BOLD,
  boldsymbol: BOLD,
  bm: BOLD,
  mathbb: DOUBLE,
  mathcal: SCRIPT,
  mathscr: SCRIPT,
  mathfrak: FRAKTUR,
  mathit: (char) => char,
  mathrm: "upright",
  mathsf: "upright",
  mathtt: "upright",
  text: "text",
  textbf: "text",
  textit: "text",
  textrm: "text",
  mbox: "text",
};
