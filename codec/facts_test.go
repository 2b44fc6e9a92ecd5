package codec_test

import (
	"encoding/hex"
	"testing"
	"time"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

func TestIdentitiesAreTheSameForEver(t *testing.T) {
	f := codectest.TestFacts()
	for _, c := range []struct {
		what string
		got  [16]byte
		want string
	}{
		{"vdi create", f.UUID("vdi", "create"), "5993288353b98da9aebe40531fe562d1"},
		{"vdi modify", f.VersionUUID("vdi", "modify"), "54b5c2d6fe09805b81b766e03829252d"},
		{"vhdx page83", f.UUID("vhdx", "page83"), "8b170b78ddba8d67a30f3f05bbd7b05a"},
		{"of nothing", codec.Facts{}.UUID("", ""), "09f7bcb7c741821abb6bb94690227528"},
	} {
		if got := hex.EncodeToString(c.got[:]); got != c.want {
			t.Errorf("identity of %s is %s, want %s", c.what, got, c.want)
		}
		if c.got[6]>>4 != 8 || c.got[8]>>6 != 2 {
			t.Errorf("identity of %s, %x, is no version 8 of variant 2", c.what, c.got)
		}
	}
}

func TestIdentitiesDiffer(t *testing.T) {
	f := codectest.TestFacts()
	image, number, content, name, created := f, f, f, f, f
	image.ID[15]++
	number.Number++
	content.Content[31]++
	name.Name = "other"
	created.Created = time.Time{}
	seen := map[[16]byte]string{}
	for what, u := range map[string][16]byte{
		"the first":           f.UUID("vdi", "create"),
		"another purpose":     f.UUID("vdi", "modify"),
		"another format":      f.UUID("vhd", "create"),
		"a shifted border":    f.UUID("vdic", "reate"),
		"another image":       image.UUID("vdi", "create"),
		"another disk":        number.UUID("vdi", "create"),
		"a version":           f.VersionUUID("vdi", "create"),
		"a version's content": content.VersionUUID("vdi", "create"),
	} {
		if other, ok := seen[u]; ok {
			t.Errorf("%s has the identity of %s", what, other)
		}
		seen[u] = what
	}
	for what, g := range map[string]codec.Facts{"content": content, "name": name, "time": created} {
		if g.UUID("vdi", "create") != f.UUID("vdi", "create") {
			t.Errorf("an identity that stays depends on the %s", what)
		}
	}
}

func TestMixedEndian(t *testing.T) {
	var u [16]byte
	for i := range u {
		u[i] = byte(i)
	}
	got := codec.MixedEndian(u)
	if want := "030201000504070608090a0b0c0d0e0f"; hex.EncodeToString(got[:]) != want {
		t.Errorf("%x, want %s", got, want)
	}
	if codec.MixedEndian(got) != u {
		t.Error("twice is not the same again")
	}
}

func TestVHDTimeIsClamped(t *testing.T) {
	for _, c := range []struct {
		t    time.Time
		want uint32
	}{
		{time.Time{}, 0},
		{time.Unix(0, 0), 0},
		{time.Date(1999, 12, 31, 23, 59, 59, 0, time.UTC), 0},
		{time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), 0},
		{time.Date(2000, 1, 1, 0, 0, 1, 999, time.UTC), 1},
		{time.Date(2024, 5, 6, 9, 8, 9, 0, time.FixedZone("", 7200)), 768294489},
		{time.Date(2136, 2, 7, 6, 28, 15, 0, time.UTC), 1<<32 - 1},
		{time.Date(2136, 2, 7, 6, 28, 16, 0, time.UTC), 1<<32 - 1},
		{time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), 1<<32 - 1},
	} {
		if got := codec.VHDTime(c.t); got != c.want {
			t.Errorf("VHDTime(%v) = %d, want %d", c.t, got, c.want)
		}
	}
}
