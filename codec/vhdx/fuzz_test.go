package vhdx

import (
	"bytes"
	"testing"

	"imagefs/codec/codectest"
)

// FuzzOpen puts its arguments over the parts of an image, which it may cut, and
// makes the checksums right unless told not to: what no checksum protects is
// then what is tried.
func FuzzOpen(f *testing.F) {
	base := bytes.Clone(layoutBytes(f))
	size := int64(len(base))
	head := base[header2At : header2At+80]
	table := base[regionTable1At : regionTable1At+80]
	items := base[metadataAt : metadataAt+32+5*tableEntryLen]
	values := base[metadataAt+metadataTable:][:40]
	bat := base[batAt : batAt+24]
	f.Add(head, table, items, values, bat, []byte(nil), uint32(0), false)
	f.Add(head, table, items, values, bat, []byte("loge"), uint32(3*mib), true)

	dirtyHead := bytes.Clone(head)
	copy(dirtyHead[48:], testLog[:])
	first, second := twoEntries(base)
	log := makeEntry(7, 0, size, size, first...)
	log = append(log, makeEntry(8, 0, size, 9*mib, second...)...)
	f.Add(dirtyHead, table, items, values, bat, log, uint32(0), true)
	f.Add(dirtyHead, table, items, values, bat, log[:9000], uint32(0), false)
	f.Add(dirtyHead, table, items, values, bat, makeEntry(1, 0, size, 1<<60, logWrite{off: 4 * mib, zero: 1 << 59}), uint32(0), true)

	large := bytes.Clone(values) // 64 TiB in blocks of 256 MiB, and of 4 KiB sectors
	le.PutUint32(large, 256*mib)
	le.PutUint64(large[8:], 64*tib)
	le.PutUint32(large[16:], 4096)
	f.Add(head, table, items, large, []byte(nil), []byte(nil), uint32(0), true)

	parent := bytes.Clone(values)
	parent[4] = hasParent
	withLocator := bytes.Clone(items)
	copy(withLocator[32+4*tableEntryLen:], itemParentLocator[:])
	le.PutUint32(withLocator[32+4*tableEntryLen+20:], 200)
	f.Add(head, table, withLocator, append(parent[:24:24], locator("relative_path", "../up.vhdx")...), bat, []byte(nil), uint32(0), true)

	scratch := bytes.Clone(base)
	f.Fuzz(func(t *testing.T, head, table, items, values, bat, log []byte, cut uint32, sums bool) {
		b := scratch
		put := func(off int, p []byte, limit int) {
			p = p[:min(len(p), limit)]
			copy(b[off:], p)
			t.Cleanup(func() { copy(b[off:off+len(p)], base[off:]) })
		}
		put(header2At, head, headerLen)
		put(regionTable1At, table, regionTableLen)
		put(regionTable2At, table, regionTableLen)
		put(metadataAt, items, metadataTable)
		put(metadataAt+metadataTable, values, 64*kib)
		put(batAt, bat, mib)
		if sums {
			// Entries first: they may lie within each other.
			log = bytes.Clone(log)
			for at := 0; at+entryHeaderLen <= len(log); at += pageLen {
				e := log[at:]
				if n := int(le.Uint32(e[8:])); string(e[:4]) == "loge" && n >= entryHeaderLen && n <= len(e) {
					reseal(e[:n])
				}
			}
			seal(b)
			for _, at := range []int{header1At, header2At, regionTable1At, regionTable2At} {
				t.Cleanup(func() { copy(b[at+4:at+8], base[at+4:]) })
			}
		}
		put(logAt, log, logLen)
		if _, err := codectest.OpenHostile(Format, b[:len(b)-int(cut)%len(b)]); err != nil {
			t.Error(err)
		}
	})
}
