package ova

import (
	"slices"
	"strings"

	"imagefs/codec"
)

// guest is a guest system by the names of three worlds.
type guest struct {
	name   string   // what a descriptor without a text is read as
	words  []string // one of which the name of such a system has, in small letters
	id     [2]int   // CIM_OperatingSystem.OSType of 32 and 64 bits
	osType [2]string
}

// other is Linux of no known kind, what an unknown system is written as.
var other = guest{"", nil, [2]int{36, 101}, [2]string{"otherLinuxGuest", "otherLinux64Guest"}}

// guests are the systems whose names every reader of a "vmx-10" machine knows,
// with the oldest version that VMware has a name for.
var guests = []guest{
	{"Ubuntu", []string{"ubuntu"}, [2]int{93, 94}, [2]string{"ubuntuGuest", "ubuntu64Guest"}},
	{"Debian", []string{"debian"}, [2]int{95, 96}, [2]string{"debian7Guest", "debian7_64Guest"}},
	{"CentOS", []string{"centos"}, [2]int{106, 107}, [2]string{"centosGuest", "centos64Guest"}},
	{"Oracle Linux", []string{"oracle"}, [2]int{108, 109}, [2]string{"oracleLinuxGuest", "oracleLinux64Guest"}},
	{"Red Hat Enterprise Linux", []string{"red hat", "redhat", "rhel"}, [2]int{79, 80}, [2]string{"rhel6Guest", "rhel7_64Guest"}},
	{"SUSE Linux Enterprise", []string{"suse linux enterprise", "sles"}, [2]int{84, 85}, [2]string{"sles11Guest", "sles12_64Guest"}},
	{"openSUSE", []string{"suse"}, [2]int{82, 83}, [2]string{"opensuseGuest", "opensuse64Guest"}},
	{"FreeBSD", []string{"freebsd"}, [2]int{42, 78}, [2]string{"freebsdGuest", "freebsd64Guest"}},
	{"Windows", []string{"windows"}, [2]int{105, 112}, [2]string{"windows7Guest", "windows8Server64Guest"}},
	{"Windows", []string{"windows"}, [2]int{0, 120}, [2]string{"windows9Guest", "windows9_64Guest"}},
}

// otherWide are ids of further systems of 64 bits, from Windows Server 2003 to
// "other".
var otherWide = []int{70, 71, 74, 77, 81, 90, 92, 98, 100, 102, 114, 118}

// byName is the guest system whose name os has.
func byName(os string) *guest {
	os = strings.ToLower(os)
	for i := range guests {
		for _, w := range guests[i].words {
			if strings.Contains(os, w) {
				return &guests[i]
			}
		}
	}
	return &other
}

// byID is the guest system of an id, and whether it has 64 bits; nil for one
// that is not known.
func byID(id int) (g *guest, wide bool) {
	for i := range guests {
		for k, n := range guests[i].id {
			if n == id && id != 0 {
				return &guests[i], k == 1
			}
		}
	}
	for k, n := range other.id {
		if n == id {
			return &other, k == 1
		}
	}
	return nil, false
}

// arch is the processor of a guest system as VMware and the id name it, "" where
// neither tells.
func arch(id int, osType string) string {
	switch {
	case strings.HasPrefix(osType, "arm"):
		return "aarch64"
	case strings.HasSuffix(osType, "64Guest"):
		return "x86_64"
	}
	if g, wide := byID(id); g != nil && wide || slices.Contains(otherWide, id) {
		return "x86_64"
	} else if g != nil && (osType == "" || osType == g.osType[0]) {
		return "i386"
	}
	return ""
}

// system chooses the id and VMware's name of a machine's guest system. What a
// package said before is kept while it fits the name and the processor.
func system(m *codec.Machine) (id int, osType string, err error) {
	k := 1
	switch a := codec.Arch(m.Arch); a {
	case "", "x86_64":
	case "i386":
		k = 0
	default:
		return 0, "", notPossible("an ova describes an x86 machine, this image is for %.80q", a)
	}
	g := byName(m.OS)
	id, osType = g.id[k], g.osType[k]
	n, ok := number(m.Extra["ova.os_id"], 1<<16-1)
	if !ok {
		return id, osType, nil
	}
	kept := m.Extra["ova.os_type"]
	h, _ := byID(int(n))
	if g != &other && h != nil && h.name != g.name {
		return id, osType, nil // the name was changed since
	}
	if a := arch(int(n), kept); a != "" && a != "x86_64" && k == 1 || a == "x86_64" && k == 0 {
		return id, osType, nil
	}
	if kept == "" {
		if h != nil {
			g = h
		}
		kept = g.osType[k]
	}
	return int(n), kept, nil
}
