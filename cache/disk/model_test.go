package disk

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"
	"time"
)

// model is a cache and the units that it must have: all that were stored and have
// not been evicted or damaged since. What else it has must be right.
type model struct {
	t    *testing.T
	rng  *rand.Rand
	dir  string
	c    *Cache
	objs []*Object
	ids  []Identity
	data [][]byte       // of each object
	must []map[int]bool // units, for each object
}

// want is n bytes of object k from off on.
func (m *model) want(k int, n, off int64) []byte { return m.data[k][off : off+n : off+n] }

func (m *model) open() {
	if m.c != nil {
		if err := m.c.Close(); err != nil {
			m.t.Fatal(err)
		}
	}
	m.c = start(m.t, Config{Dir: m.dir}, system{})
	m.objs = nil
	for _, id := range m.ids {
		m.objs = append(m.objs, m.c.Object(id))
	}
	settled(m.t, m.c)
}

// some is a random run of units of an object.
func (m *model) some() (k int, off, n int64) {
	k = m.rng.IntN(len(m.ids))
	size := m.ids[k].Size
	off = m.rng.Int64N((size+Unit-1)/Unit) * Unit
	return k, off, min(int64(1+m.rng.IntN(1<<m.rng.IntN(6)))*Unit, size-off)
}

func (m *model) save() {
	k, off, n := m.some()
	p := m.want(k, n, off)
	if m.rng.IntN(2) == 0 {
		m.objs[k].Save(p, off)
		settled(m.t, m.c)
	} else if err := m.objs[k].Store(m.t.Context(), p, off); err != nil {
		m.t.Fatal(err)
	}
	for end := off + n; off < end; off += Unit {
		m.must[k][int(off/Unit)] = true
	}
}

// load reads a run and holds it against the model.
func (m *model) load(k int, off, n int64) (lost int) {
	p := make([]byte, n)
	want := m.want(k, n, off)
	for at := int64(0); at < n; {
		got, kept := m.objs[k].Load(p[at:], off+at)
		if got <= 0 || int64(got) > n-at {
			m.t.Fatalf("object %d at %d: %d bytes of %d", k, off+at, got, n-at)
		}
		end := at + int64(got)
		if kept && !bytes.Equal(p[at:end], want[at:end]) {
			m.t.Fatalf("object %d from %d on: other bytes", k, off+at)
		}
		for ; at < end; at += Unit {
			unit := int((off + at) / Unit)
			if m.must[k][unit] && !kept {
				lost++
				delete(m.must[k], unit)
			} else if kept {
				m.must[k][unit] = true
			}
		}
		at = end
	}
	return lost
}

// sync reads everything: at most so many units are lost.
func (m *model) sync(most int) {
	lost := 0
	for k, id := range m.ids {
		lost += m.load(k, 0, id.Size)
	}
	if lost > most {
		m.t.Fatalf("%d units are lost, more than %d", lost, most)
	}
	settled(m.t, m.c)
}

// damage changes one byte of a file, or cuts it.
func (m *model) damage() {
	list := files(m.t, m.dir)
	if len(list) == 0 {
		return
	}
	path := list[m.rng.IntN(len(list))]
	most := perChunk
	rewrite(m.t, path, func(b []byte) []byte {
		i := m.rng.IntN(len(b))
		switch m.rng.IntN(8) {
		case 0:
			return b[:i]
		case 1, 2:
			i = m.rng.IntN(headerSize)
		}
		if b[i] ^= 1 << m.rng.IntN(8); i >= headerSize {
			most = 1
		}
		return b
	})
	// The counters follow what others did when the folder is listed.
	err := last(m.c, func(c *Cache, _ job) error {
		for i := range folders {
			c.list(i)
		}
		return nil
	})
	if err != nil {
		m.t.Fatal(err)
	}
	m.sync(most)
	m.sync(0) // it is forgotten, and nothing else
}

// TestModel does random things to a cache and holds it against a map of units.
func TestModel(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	m := &model{t: t, rng: rand.New(rand.NewPCG(seed, 0)), dir: t.TempDir()}
	for k, size := range []int64{3 * mib, mib + 5*Unit + 100, 7} { // they fit; see below for evictions
		m.ids = append(m.ids, Identity{Store: "s", Key: "k", ETag: string(rune('a' + k)), Size: size})
		m.data = append(m.data, bytesOf(uint64(k), int(size)))
		m.must = append(m.must, map[int]bool{})
	}
	m.open()
	steps := 1000
	if testing.Short() {
		steps = 200
	}
	for i := range steps {
		switch what := m.rng.IntN(100); {
		case what < 50:
			m.save()
		case what < 90:
			k, off, n := m.some()
			if lost := m.load(k, off, n); lost > 0 {
				t.Fatalf("step %d: %d units are lost", i, lost)
			}
		case what < 94:
			m.damage()
		case what < 97: // all have been used long ago
			old := time.Now().Add(-time.Hour)
			for _, path := range files(t, m.dir) {
				if err := os.Chtimes(path, old, old); err != nil {
					t.Fatal(err)
				}
			}
		case what < 98:
			if err := last(m.c, func(c *Cache, _ job) error { c.evict(); return nil }); err != nil {
				t.Fatal(err)
			}
			m.sync(minSize / Unit) // any of them
		case what < 99:
			m.open()
			m.sync(0)
		default:
			counted(t, m.c)
		}
	}
	m.sync(0)
	counted(t, m.c)
	if s := m.c.Stats(); s.Errors != 0 || s.Bytes > minSize {
		t.Errorf("got %+v", s)
	}
}
