"""Codebooks of the IQ formats and the other small tables that decoding and kernels share.

Each codebook row is a number whose base-B digits, lowest first, choose levels; the rows ascend, so
their differences are small and fit one byte each (255 says: add 255 and read on). The rows are
facts of the formats, defined in `ggml-common.h` of the ggml project.
"""

from __future__ import annotations

from base64 import b85decode
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.quant.block_type import QuantError

_TWO_BIT = (8, 25, 43)
_LEVELS: dict[str, tuple[int, ...]] = {
    "IQ1_S": (-1, 0, 1),
    "IQ2_XXS": _TWO_BIT,
    "IQ2_XS": _TWO_BIT,
    "IQ2_S": _TWO_BIT,
    "IQ3_XXS": (4, 12, 20, 28, 36, 44, 52, 62),
    "IQ3_S": (1, 3, 5, 7, 9, 11, 13, 15),
}
_COLUMNS = {"IQ1_S": 8, "IQ2_XXS": 8, "IQ2_XS": 8, "IQ2_S": 8, "IQ3_XXS": 4, "IQ3_S": 4}

_FLAT: dict[str, tuple[int, ...]] = {
    "IQ4_NL": (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
    "MXFP4": (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12),
}

_STEPS = {
    "IQ1_S": (
        "00II60s;dC0t5mD1_A;I1p)*D1qA{G0t5jD0s;a71qK8H1OfyC0s;XC1_A;I1p)*D1qA{G0tE&J1q1>D1OfsB0|E"
        "jB0t*5H2nGfQ1Ox#O1_lNK0RadC0tf;G1OWj80RaL60s;a80to{G0s;a70Rj#L3<3rM0s;d81Of&I0t5>J1Of#G0"
        "t5mD1_THN0t5mD1p)*D1qK2H1px*K0RsjC1PlTK0tN*F1Of#G0t5mD1_lEI1p)#B0tE#E1Of^H0t5vC1_A~I0t5m"
        "90}KKJ1p@{G0s;a80s;gA1O@~F0RaI40RjR92nYfO0uTZM2n7WK1OfsA1Of;K0s;sI1Of#C0s#XA1p@&A0s;a70R"
        "jX90tN&E0|5d70RjR60|WvD0s;X60s;a80s;a80RaU80RaI50RjR60RjR70RaL60RaL50RjO50s;mC0RadB0RjR9"
        "1Ofp80s;a90RaI60s#U60R{sD0tf^Q1PBHK0s;aA0s;X60s;aC1_BBW0s;gA0|x;C0t5m90RjO51Ox~J0RjR91Of"
        ">M2LcBI0s;a80t5sC1_lHJ3IYTI1qA{E0s;jF1_J{H0t5mD1p)#B0tE&F1O^8I1O@^E0s;X62n7WK1_lKJ0s{pC1"
        "Of#H1Of&I1p)#C1p)*D1qcEH1_%KG0t5mA0tN^M0t5pC3<d@U0t5mC0s#XA0s;yG0|5d80s;a81_c5I1_lNO1px*"
        "H0t5&O0t5mD1p)*D1qK2N1p)*D3IYTI2m=BH1_}ZM0tNyC0tN*I0tEpD0t5mI0t5mD1_S~I1p)*D1qA{G0tE&H2n"
        "+-Q0s;a80uTfP1Ox#B0s;gA0RaL61Of&E0s;a70RjO90s;a80t5mA1pxsI1_A;I1_}ZM1Oy2M3I+@V2?hcJ0s;X6"
        "1pxvA0s;gA0s;aB0R{sB0t5mA0RaL61Ox&C0RaL60RjO50RaO70RaL80RaL80s#R60R;jA0s{jD0RjR70t5mA0s;"
        "d80RjO61OfsC0|W#C1_A;I1_J~I2L%EI0t5mA0tN;G0s;mG0|5g80|5dA0s;gC1Ofp80RaL60s;X81_A^E0RaR80"
        "s;^a0s;mC0t5sO3I+lJ0RjX91OfsC0t5mC0s#R61_B5I1_A>C1Of&E0RaL60RaI40t5j80s;a70RjR60RaI40RaI"
        "50s#R61Of&E0RaL61Ox&E1_A^E0tf;G0s;X60t5mH1p)#C0R#yF1_A*A0RaO80s;a80RaL50RaL50RaI40s#R50R"
        "jRB0s;a70RjU80R#d80RaI50s#R50RaL50s;X60s;X60RaI40RjO50RaI40RaI40s#R50RaL60RsU60RjO50RaO7"
        "0RaL60RaI50RaO70RjO60RaI40RaI60|5a60RaI40RaI40RaL60RsdA0RaI40s{mC0s#R51pxs90t5mC2L%EG0s;"
        "X60RaL60RaaE0s;a81O@{E0t5mA0RaLA1_A*A0s;X60RaI40RaL60RaL70|NsB0RaI41_%QO1OWsA0tNyB0|Nm80"
        "R#d90s;pE0s#R60t^TO0tN^M1OWj80s;a80}TiU0s;aA0tNvC0tN#E0|5dC0RsdD0|EvF0t^HK3jqWO0RaOI1_TH"
        "X0RjO70t5mA0s;a80s;X60s#R60tf*E0s;X60RaL60t5yE0s;d80uBKI0s;X70RaL70s#R62Lb^C0|5d70|Eg71q"
        "B8L1pxs91OfsA0s#R50s#a90|EjB1Ofp80s{gA4*~`T3IYTI1_lNN2n7NL1O@^E0s;X80RaR80RaL61Ox*C1qB8I"
        "0Rs#K0Sy8K0t5mA1OWpF2Ll2I1OfyC3IYTI1qA^D0s;mF0t5mD1p)*D1qK2F0tN;G1OfsA0RaI80s;mD1p)#F1p)"
        "*D1qA{G0t*5J1_c5H0tE#E1Og2N3<3uO1OfsC4g?Ga1OfyG0s;X80t5m90RjO90RaL60s;a80s;aE4g>-Q1_A^D0"
        "R#g90t5pE1_uNN0t5mD1p)*D0s{sD1O@{F0t5mD1p)*D1px&D0tf~I0s;a80t5mA3JL-S1p)*D1qA{G0tE&F0u2H"
        "L0tE#E1Of#H1OWjC1_S~I0s;sD1qK2F0tN;G0s;aA0s;a80s;aA1pxv90RjX92m%HI0t5mA0tN;G1O^BK0s;a80t"
        "f;I2m%WO0s;gC0tf^M0s;X60RaL50RjjD1_1#A1O@^G0s;X60s#R60|NsA0s;X60s;X60RaI40RaL60RaL70|EpA"
        "0RaI50RaL60s;a81_T2F1p)>F0RsU70RjdB1px#B0|5aD0s;mK0tN;I1Ofs90|WsH1_S~I2m%5E0s;a80RaL61Of"
        "sA0s;a70RjX90RsX81_A;E0t5&N2?zoL0t5mC3<d%L0Sy8K0tE#E1Of#H0s;aH0t5mD1p)*D1p@;D0s;XK0s{jA0"
        "s;aG1p)&C4Fm!K2LuEH1qK8H1_c5H0tE#E1OgET1_A~H0RjR70|5a61{?wc0s;aE0t5mE0s#R61_S~E0RaL80s;^"
        "Q1OoyC2m%8G0s#R70t^HM0RjU80t5mC0tx~I0t*5H0t*5J0tE#E1Of#J1Oo#G2m}NI1Of{M4FUuL3IYTI3jzWS0t"
        "5mD1p)*D"
    ),
    "IQ2_XXS": (
        "00II60s;aC0t5mA0tN;I0tNyG3<v@S1P&ey3<44)8Uh9i0tNyE3<?4U3<d%O3=R|m3K#+s9ufuw0tO5O0tNyW7#K"
        "JTMgj&32oeki1P%ra5(o+~3Ni)^1Pl}^AR-P#0tONs8U#cxECL1=5C{S?2rvRr0tONeC>#`E7z{9eGy(<&1Of&I2"
        "m}fO1`-k+2m}}i7zhd;1`H$+779F40tONUGAaZLI3N-R1O@^m1{fMHMo<D6N+v1_1|U2<P6iSf9w;~-Bm`ChE{4_"
        "u1{53|3=BX>0tN&Q5+ooZ78DXDQdmj`3<fS1C^|9}3Rtu(k|Gu!N?`v9Fa"
    ),
    "IQ2_XS": (
        "00II60s;a80s;a80t5mA0s;a80t5mE0s;aA0t5mI0s;a80s;a80s;mC0s;gA1_lHI1`+}S0t5mE3IYZM4hR$i0s;"
        "a80s;gA1_A;C1OfsC3IYZa0s;aA0tN~K1_}rq0tOBQ0vs3u0s;a80tN&I0tN;Q5(okU1`-?w6cPq31PTHI0s;a80"
        "t5mE0s;aA0tN^I0tONS0s;gA1_}ZO5)1+k0s;gQ5+niw0t5mE3IYTI3<ewm1`;+57BB(^0uT%o76dLtDgpum0s;a"
        "81_}ZO5)ujm1`-AkAQU1P1Of&S0yZ29APf*Z1O@^M78DLT3>XY11OgNS0s;a80s;gA1_A;C0s;aC1O@^I5&{AO1O"
        "f&M0tONU5C{SW0uBN;0s;aA0t5mI0tONc5CR4a1}q8)76vW?1`-4a2qFp;1`r@l0s;aA0tN;I0tONs0tN&Q0yG{n"
        "0s;mK2oees2nH|)C?FOH3=jw+90~$%7y<?o3<wMq0%i^#5DrWd1T0uIGC(2-A_4*e1Of&K0s;mS0u}-S0s;gQ3I-"
        "+;Bmxiy1Of&E0uB-o6do=VCL9J37779u2w)-x2nqxO1`-Ys7!({z6chv+1_nST0xVi6COjY{0t5mI2re!LA_M{i6"
        "dV#HD3BBs3IYT$1_m|)E&?VH"
    ),
    "IQ2_S": (
        "00II60s;a80s;a80t5mA0s;a80t5mA0s;a80t5mE1Ox&C0s;a80s;gA1_A;C1OfsA0t5mC0tNyC1_A~G0s;gA1_%"
        "NI0s;aA4g>@Q2nYfK0s;a80t5mA0s;a80s;a80s;a80tNyC0s;gA1Of&E0s;a80s;a81OfyC0s;a80s;gA1_A;C1"
        "Of&M0s;a81P%lO1Of&M0tONS0s;gA0s;aA1OfsA0s;a80t5mE1PBfS0tNyC0t5&I0t5mE3J4Mk0tf^G3L*>w0s;a"
        "80s;gA0t5mA0t5mA0s;a80t5mA1Ox&E0tNyC0s;a80s;a80s;gA0s;a80s;gA1_A;C1OgBO1OfyG0tN&I0uTZQ5&"
        "{AO1OfsA0t5mC0s;a80s;aA0tNyC0t5mE3IYNG0s;a81Of&E0s;gA1_}ZO5(EMS0tN~K1`-+q0s;a81OfyI0s;aA"
        "0tN~K7y<$U1Of&M0tOHk3I-AmC;|ck1OfsA0t5sC0tNyC2nGlQ4gvxO0s;mI0s;mC1_}ZO5(o?g0t5ya0uTfO0s;"
        "aA0t5mE0s;aA0tN~K1`-4U1Of&M0tOBQ90CRs5GDi$0uTZQ8WI8m209iD91H>!0s;a80s;a80s;aA0s;a80s;a80"
        "s;aC0tN&E1Of&E0s;gA0s;a80tNyC0s;a80t5mE0s;aA0tN~K1_A;C1_lHI1Of&M0vG}U0s;a80s;a80s;gA0s;a"
        "80s;gA1_A;C1Of&M0s;a80s;aA0tNyC0t5mE2m%5I5&{AO1Of&M0tONm1_A^E0s;aA0tNyC0t5mE3<eSc0s;gA1_"
        "}ZO5)KXm1`;*`0s;gA0s;a80s;gA0s;a80s;gA1_A;C1OgBO0s;a80s;gA1_A;C1Of&M0tONU0t5mE3IYZY0vrMY"
        "0s;a80t5mE0s;aA0tN~K1`+}S0t5mE3IYZa90CRo1U3Q!0t5mE3IYZQ3LF9k5;hPj6a)eS1OfsA1Of&G0t5mE3<e"
        "Sc0s;gA1_}ZO5)cjs5)L2;1OfyC1_}ZO5*z{s5(p3u5JC_F1}GE^8dNL@0s;aA0t5mC1_A~G0s;gG1O@^S0t5mA0"
        "s;gA1_A;C1OgBO1`q-S1OfsO0tPMu0s;a80s;gG0s;aA0tN~K1`+}S0t5mE3IYZa2owSa5CS#?1_BTQ1||ps7#1`"
        "Z0t^xe0t5mA0s;mG0s;aA0tN~K1`-4Y0uTZQ2qpps5;6n=0s;gA1_}ZO5)KXm1`;X+2p|w50tOBQGy)<7Y7ztl1P"
        "BHK0tO}q92O!53<Lrm1OgBQ0tONy4h9frG!QZ_6dVEy0t6%!"
    ),
    "IQ3_XXS": (
        "00II90t5j92MHMh1Of#D2LuBG2MY`c0s;jG0tW&F3I+}Y1_1&KBNG$_3k(7T1``l77Zd~n6%G&r1p)^G1p)#K0T="
        "=Y2Ldkw1p)^LA_f8u2@Mbn1S2Q}5)%wf4j=*t0tEsD0|_4j0s{gE2O9(d2m%KN0RjyH4HO3iECeAA7!(Q{MFI;K9"
        "0vji0u>Df1_BNV3j!Mg1q~Gt4-!2O69xth8y^xCC>0b74gw4WO%x9S5C#z*A0-PR4i!xU0uC}47YGIr7atBF2q_&"
        "41S1F+Pb>~H5CRSzARZ+o21X$zF(?i)0s;XN5G)ER8wC~(4izB~9|96Y"
    ),
    "IQ3_S": (
        "009950s#R50s;a71O^2H0|Ej91p)^H0|5a60t5jB0|NvC1P2WS1qJ~G0s#X90|WyE1_J^D0u2KQ1_T2F2Lb~I1Og"
        "2L1Op2M0s{sH0|pNY0t^BK1qK8H4+RSY0uB)m2Lb{N0t5vO1QY=Q0t5j90s;X72Ll2Q0s{#K0RjU81O*2J1_uHT1"
        "_BBL0s#aD1_KHM3I_uN0RsjG0R#mR1`7fO0u2HO1OfyV2LlEN0uLty0}TQj0tEsG3<MDd2mt~D0s#U70s{gB0Rjg"
        "C0s{gK0RsX90tN#F0|NvD1_u}e0}28K2LcKN3IhZJ0|W^I1p)^K4hsee0|x^H83P9e2@L@Y4G01S3LFF!1PuZU1s"
        "Vqe0s;dE0s;jB0|E*L2m%5J1p*Ba3IqZQ1_}ZU83zOf0t5jG0t5yQ2nGcN2N4DY4F>`X1quoc6B8f;4FU@z1O^5K"
        "0|N&K5DEnX0tW^K1_lHa0tE#G3Iz`X1`GuP1p)^IBLWf&0T~Pe3LzO06c_~y3kDem1O^TS0|N{O1p)#E2MHhs2?_"
        "-U4HpFg4-Ewj1_lER3JfF+69P9N0uDC<0t^Bb5D*6)77_*v1qKKV1rIe24-Nwv6crmO0yP8!2?7iP3<eMf3l9Pu0"
        "|W*G2N4+<0}d7h1_c-@5Fi&P"
    ),
}


def _codebook(name: str) -> NDArray[Any]:
    levels = np.array(_LEVELS[name])
    steps = np.frombuffer(b85decode(_STEPS[name]), dtype=np.uint8)
    numbers = np.cumsum(steps, dtype=np.int64)[steps != 255]
    place = len(levels) ** np.arange(_COLUMNS[name])
    rows = levels[numbers[:, None] // place % len(levels)]
    out: NDArray[Any] = rows.astype(np.int8 if levels.min() < 0 else np.uint8)
    return out


def _signs() -> NDArray[Any]:
    """Seven free sign bits; the eighth makes the number of set bits even."""
    code = np.arange(128, dtype=np.uint8)
    parity = np.bitwise_xor.reduce((code[:, None] >> np.arange(7, dtype=np.uint8)) & 1, axis=1)
    out: NDArray[Any] = code | (parity << np.uint8(7))
    return out


@cache
def grid(name: str) -> NDArray[Any]:
    """A table as a read-only, contiguous array.

    'IQ1_S' int8 [2048, 8] (IQ1_M uses it too); 'IQ2_XXS' [256, 8], 'IQ2_XS' [512, 8], 'IQ2_S'
    [1024, 8], 'IQ3_XXS' [256, 4], 'IQ3_S' [512, 4], all uint8; 'IQ4_NL' and 'MXFP4' int8 [16];
    'SIGNS' uint8 [128], sign bytes of 7-bit codes. Raises QuantError for another name.
    """
    if name in _STEPS:
        table = _codebook(name)
    elif name in _FLAT:
        table = np.array(_FLAT[name], dtype=np.int8)
    elif name == "SIGNS":
        table = _signs()
    else:
        known = ", ".join([*_STEPS, *_FLAT, "SIGNS"])
        raise QuantError(f"there is no table {name!r}; known are {known}")
    table.flags.writeable = False
    return table
