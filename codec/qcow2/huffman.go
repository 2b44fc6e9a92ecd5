package qcow2

import (
	mathbits "math/bits"
	"sync"
)

const (
	maxLits  = 286
	maxDists = 30
	maxMatch = 258
	maxBits  = 15

	// Codes of up to so many bits are found in one step, longer ones in two.
	litRoot  = 11
	distRoot = 9
	preRoot  = 7

	// Entries of a table with all its second steps: a complete code of 288
	// symbols needs at most 2342, and one of 32 at most 594.
	litTable  = 4096
	distTable = 1024
)

// An entry of a decoding table has in its low byte the bits to take, with extra
// bits, in the next byte those of the code alone, and above them the value: a
// literal, the least length or the least distance. The flags say what it is; in
// a table of distances, whose values reach into them, only entrySub does.
// An entry of no bits is no code.
const (
	entrySub     = 1 << 31 // second step: where, and how many bits in the place of the code's
	entryLiteral = 1 << 30
	entrySpecial = 1 << 29 // second step, end of block or no code
	entryEnd     = 1 << 28
)

func entryLen(e uint32) uint     { return uint(e >> 8 & 0xff) }
func entryExtra(e uint32) uint   { return uint(e&0xff) - entryLen(e) }
func entryStart(e uint32) uint64 { return uint64(e >> 16 & 0xfff) }

// tables decode a block.
type tables struct {
	lit  [litTable]uint32
	dist [distTable]uint32
}

// preOrder is the order of the lengths of the code of code lengths.
var preOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// The entries of symbols, but for their bits.
var preSymbols, litSymbols, distSymbols = symbols()

func symbols() (pre [19]uint32, lit [288]uint32, dist [32]uint32) {
	for i := range pre {
		pre[i] = uint32(i) << 16
	}
	for i := range 256 {
		lit[i] = entryLiteral | uint32(i)<<16
	}
	lit[256] = entrySpecial | entryEnd
	base := uint32(3)
	for i := range uint32(28) {
		extra := max(i/4, 1) - 1
		lit[257+i] = base<<16 | extra
		base += 1 << extra
	}
	lit[285] = maxMatch << 16
	base = 1
	for i := range uint32(30) {
		extra := max(i/2, 1) - 1
		dist[i] = base<<16 | extra
		base += 1 << extra
	}
	for _, none := range []*uint32{&lit[286], &lit[287], &dist[30], &dist[31]} {
		*none = entrySpecial
	}
	return pre, lit, dist
}

// fixed are the tables of blocks with fixed codes. RFC 1951, section 3.2.6.
var fixed = sync.OnceValue(func() *tables {
	t := new(tables)
	var lens [288]uint8
	for i := range lens {
		switch {
		case i < 144 || i >= 280:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		default:
			lens[i] = 7
		}
	}
	var dists [32]uint8
	for i := range dists {
		dists[i] = 5
	}
	build(t.lit[:], litRoot, lens[:], litSymbols[:])
	build(t.dist[:], distRoot, dists[:], distSymbols[:])
	return t
})

// build makes the table of the code with the given lengths, of which it is
// false if there is none: they must make a complete code, or have one code of
// one bit, or none. RFC 1951, section 3.2.2.
func build(table []uint32, root uint, lens []uint8, symbols []uint32) bool {
	var count [maxBits + 1]int
	for _, l := range lens {
		count[l]++
	}
	left, used := 1, 0
	var next [maxBits + 2]int // where the symbols of a length begin in sorted
	for l := 1; l <= maxBits; l++ {
		left = left<<1 - count[l]
		if left < 0 {
			return false
		}
		used += count[l]
		next[l+1] = next[l] + count[l]
	}
	var sorted [288]uint16
	for i, l := range lens {
		if l != 0 {
			sorted[next[l]] = uint16(i)
			next[l]++
		}
	}
	if left > 0 {
		if used > 1 || used != count[1] {
			return false
		}
		for i := range 1 << root {
			table[i] = entrySpecial
			if used == 1 && i&1 == 0 {
				table[i] = coded(symbols[sorted[0]], 1)
			}
		}
		return true
	}

	// code is the code of the symbol, its first bit lowest. Codes up to root
	// bits are put once, and the table doubled at each further bit.
	code, k := uint(0), 0
	for l := uint(1); l <= root; l++ {
		for range count[l] {
			table[code] = coded(symbols[sorted[k]], l)
			if k++; k == used {
				for ; l < root; l++ {
					copy(table[1<<l:2<<l], table[:1<<l])
				}
				return true
			}
			code = after(code, l)
		}
		if l < root {
			copy(table[1<<l:2<<l], table[:1<<l])
		}
	}
	// Longer codes that share their first root bits have a table of the rest.
	start, end := uint(0), uint(1)<<root
	width, prefix := uint(0), ^uint(0)
	for l := root + 1; l <= maxBits; l++ {
		for c := count[l]; c > 0; c-- {
			if p := code & (1<<root - 1); p != prefix {
				// Wide enough for the longest of them, which are those that
				// fill it: the code is complete.
				width, prefix = l-root, p
				for have := c; have < 1<<width; {
					width++
					have = have<<1 + count[root+width]
				}
				start, end = end, end+1<<width
				table[p] = entrySpecial | entrySub | uint32(start)<<16 | uint32(width)<<8 | uint32(root)
			}
			e := coded(symbols[sorted[k]], l-root)
			for i := code >> root; i < 1<<width; i += 1 << (l - root) {
				table[start+i] = e
			}
			if k++; k == used {
				return true
			}
			code = after(code, l)
		}
	}
	return true
}

// coded is the entry of a symbol whose code has l bits.
func coded(symbol uint32, l uint) uint32 {
	if symbol == entrySpecial {
		return symbol // has a code in the fixed ones, but no meaning
	}
	return symbol + uint32(l)*0x101
}

// after is the code of l bits that follows code, both with the first bit lowest.
// There is one.
func after(code, l uint) uint {
	bit := uint(1) << (mathbits.Len(code^(1<<l-1)) - 1)
	return code&(bit-1) | bit
}
