package main

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"imagefs/remote"
	"imagefs/remote/remotetest"
)

func TestSizeFlag(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want size
		ok   bool
	}{
		{"512", 512, true},
		{"64K", 64 << 10, true},
		{"512M", 512 << 20, true},
		{"2GiB", 2 << 30, true},
		{"1tb", 1 << 40, true},
		{"", 0, false},
		{"M", 0, false},
		{"-1", 0, false},
		{"1.5G", 0, false},
		{"12K3", 0, false},
		{"9999999999T", 0, false},
	} {
		var s size
		err := s.Set(tc.in)
		if (err == nil) != tc.ok || s != tc.want {
			t.Errorf("%q: got %d, %v; want %d, ok %v", tc.in, s, err, tc.want, tc.ok)
		}
	}
}

func TestIEC(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 5 << 40: "5.0 TiB", 1<<63 - 1: "8.0 EiB",
	} {
		if got := iec(n); got != want {
			t.Errorf("%d: got %q, want %q", n, got, want)
		}
	}
}

func TestMountOptions(t *testing.T) {
	f := &mountFlags{options: []string{"rw,noexec,allow_other,uid=12", "gid=34,umask=022,formats=vdi+raw,refresh=5s,timeout=7s,cache_size=1G,cache_dir=/c,disk_cache_size=2G,_netdev,x-systemd.automount"}}
	if err := f.applyOptions(); err != nil {
		t.Fatal(err)
	}
	if !f.allowOther || f.uid != 12 || f.gid != 34 || f.umask != 0o22 || f.formats != "vdi,raw" ||
		f.refresh != 5*time.Second || f.store.timeout != 7*time.Second || f.cacheSize != 1<<30 ||
		f.disk.dir != "/c" || f.disk.size != 2<<30 {
		t.Errorf("flags %+v", f)
	}
	if !slices.Equal(f.options, []string{"noexec"}) {
		t.Errorf("passed on to the kernel: %q", f.options)
	}
	for _, bad := range []string{"colour=red", "uid=nobody-at-all", "umask=9", "refresh=soon", "cache_size=much"} {
		f := &mountFlags{options: []string{bad}}
		var usage usageError
		if err := f.applyOptions(); !errors.As(err, &usage) || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: got %v, want a usage error that quotes it", bad, err)
		}
	}
}

func TestParseFormats(t *testing.T) {
	names := func(list string) string {
		chosen, err := parseFormats(list)
		if err != nil {
			return err.Error()
		}
		var s []string
		for _, v := range chosen.views {
			s = append(s, v.Name())
		}
		for _, p := range chosen.packages {
			s = append(s, p.Name())
		}
		return strings.Join(s, ",")
	}
	if got := names("vmdk,qcow2,vmdk"); got != "vmdk,qcow2" {
		t.Errorf("chosen: %s", got)
	}
	if got := names("sparse.vmdk"); got != "sparse.vmdk" {
		t.Errorf("a flavour by name: %s", got)
	}
	if got := names("zvhd2,zlib.zvhd2"); got != "zvhd2,zlib.zvhd2" {
		t.Errorf("what is not shown by default: %s", got)
	}
	if got := names(""); got != "qcow2,vdi,vhd,vhdx,vmdk,raw,ova,oci" {
		t.Errorf("default: %s", got)
	}
	if got := names("all"); !strings.Contains(got, "sparse.vmdk") {
		t.Errorf("all: %s", got)
	}
	if got := names("floppy"); !strings.Contains(got, `"floppy"`) || !strings.Contains(got, "sparse.vmdk") {
		t.Errorf("unknown: %s", got)
	}
}

func TestExitCodes(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("any"), 1},
		{usagef("what"), 2},
		{storeError{fs.ErrPermission}, 3},
		{remote.ErrUnavailable, 3},
		{fs.ErrNotExist, 4},
		{errBadImages, 5},
		{failed{verdict{Code: 3}}, 3},
	} {
		if got := exitCode(tc.err); got != tc.want {
			t.Errorf("%v: got %d, want %d", tc.err, got, tc.want)
		}
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	for _, c := range commands() {
		var b strings.Builder
		printHelp(&b, c)
		if !strings.Contains(b.String(), c.summary) || !strings.Contains(b.String(), "imagefs "+c.name) {
			t.Errorf("%s: %s", c.name, b.String())
		}
	}
}

// TestSpoolsOfStores: what was copied into one store must never be taken for
// what another is to get.
func TestSpoolsOfStores(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "testkey")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
	f := &spoolFlags{dir: t.TempDir()}
	seen := make(map[string]string)
	for _, endpoint := range []string{remotetest.NewServer(t).Endpoint, remotetest.NewServer(t).Endpoint} {
		for _, names := range [][]string{{"s3://bucket/a", "s3://bucket/a/"}, {"s3://bucket/b"}} {
			var folder string
			for _, name := range names {
				st, err := (&storeFlags{endpoint: endpoint, pathStyle: "path"}).open(t.Context(), name)
				if err != nil {
					t.Fatal(err)
				}
				got, err := f.folder(st.id)
				if err != nil || folder != "" && got != folder {
					t.Errorf("%s: %q, %v; want %q", name, got, err, folder)
				}
				folder = got
			}
			if other := seen[folder]; other != "" {
				t.Errorf("%s at %s shares %q with %s", names[0], endpoint, folder, other)
			}
			seen[folder] = names[0] + " at " + endpoint
		}
	}
}
