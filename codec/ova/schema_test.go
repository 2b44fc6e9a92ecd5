package ova

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"

	"imagefs/codec"
	"imagefs/codec/codectest"
)

// TestSchema: the descriptor has the structure of the published schema.
func TestSchema(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	for i := range 40 {
		m := codec.Machine{Name: fmt.Sprint("m<&>", i), CPUs: r.IntN(3), MemoryMiB: r.Int64N(3) * 512}
		if r.IntN(2) == 0 {
			m = full()
		}
		m.Firmware = []string{"", "bios", "uefi"}[r.IntN(3)]
		disks := make([]codec.Disk, 1+r.IntN(20))
		for k := range disks {
			disks[k] = codectest.Empty(mib)
		}
		checkStructure(t, descriptor(t, layout(t, m, disks...)))
	}
	good := descriptor(t, layout(t, full(), codectest.Empty(mib)))
	// The checker itself must be able to fail.
	for _, c := range [][2]string{
		{"<Info>Virtual disks</Info>\n", ""},
		{"rasd:ElementName", "rasd:Weight"},
		{"ovf:diskId=", "ovf:name="},
		{nsRASD, "http://else"},
		{"</References>", "</References><Bogus/>"},
		{"<rasd:Parent>3", "<rasd:Parent>9"},
		{`ovf:fileRef="file0"`, `ovf:fileRef="file7"`},
	} {
		if structure(strings.ReplaceAll(good, c[0], c[1])) == nil {
			t.Errorf("%q made %q is found in order", c[0], c[1])
		}
	}
}

func checkStructure(t testing.TB, text string) {
	t.Helper()
	if err := structure(text); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
}

// schema is that of DSP8023 for what is written here: the children of an element
// in order, "?" for one that may be missing, "*" for any number.
var schema = map[string][]string{
	"Envelope":               {"References", "DiskSection?", "NetworkSection?", "VirtualSystem"},
	"References":             {"File*"},
	"DiskSection":            {"Info", "Disk*"},
	"NetworkSection":         {"Info", "Network*"},
	"Network":                {"Description?"},
	"VirtualSystem":          {"Info", "Name?", "AnnotationSection?", "OperatingSystemSection", "VirtualHardwareSection"},
	"AnnotationSection":      {"Info", "Annotation"},
	"OperatingSystemSection": {"Info", "Description?"},
	"VirtualHardwareSection": {"Info", "System?", "Item*", "Config*"},
	"File":                   nil, "Disk": nil, "Info": nil, "Name": nil, "Annotation": nil, "Description": nil, "Config": nil,
}

// needs are the attributes that the schema requires.
var needs = map[string][]string{
	"File": {"id", "href"}, "Disk": {"diskId", "capacity"}, "Network": {"name"}, "VirtualSystem": {"id"}, "OperatingSystemSection": {"id"},
}

// rasd and vssd are required children of items and of the system, which stand in
// alphabetical order with the others.
var (
	rasd = []string{"ElementName", "InstanceID", "ResourceType"}
	vssd = []string{"ElementName", "InstanceID"}
)

func structure(text string) error {
	root, err := parseXML([]byte(text))
	if err != nil {
		return err
	}
	ids := map[string]bool{}
	for _, f := range root.one("References").all("File") {
		ids[f.attrIn(nsOVF, "id")] = true
	}
	for _, d := range root.one("DiskSection").all("Disk") {
		if !ids[d.attrIn(nsOVF, "fileRef")] {
			return fmt.Errorf("disk of the unknown file %q", d.attrIn(nsOVF, "fileRef"))
		}
		ids["ovf:/disk/"+d.attrIn(nsOVF, "diskId")] = true
	}
	instances := map[string]bool{}
	for _, i := range root.one("VirtualSystem").one("VirtualHardwareSection").all("Item") {
		if id := i.line("InstanceID"); instances[id] {
			return fmt.Errorf("two items of the instance %q", id)
		} else if p := i.line("Parent"); p != "" && !instances[p] {
			return fmt.Errorf("item %s of the unknown parent %q", id, p)
		}
		instances[i.line("InstanceID")] = true
		if h := i.line("HostResource"); h != "" && !ids[h] {
			return fmt.Errorf("item of the unknown %q", h)
		}
	}
	return walk(root)
}

func walk(n *node) error {
	for _, a := range n.attrs {
		if a.Name.Local != "xmlns" && a.Name.Space != "xmlns" && a.Name.Space != nsOVF && a.Name.Space != nsVMW {
			return fmt.Errorf("%s has the attribute %v", n.name, a.Name)
		}
	}
	if n.name == "Item" || n.name == "System" {
		return cim(n)
	}
	if want := map[bool]string{true: nsVMW, false: nsOVF}[n.name == "Config"]; n.space != want {
		return fmt.Errorf("%s is of the namespace %q, want %q", n.name, n.space, want)
	}
	for _, a := range needs[n.name] {
		if n.attrIn(nsOVF, a) == "" {
			return fmt.Errorf("%s without ovf:%s", n.name, a)
		}
	}
	want, ok := schema[n.name]
	if !ok {
		return fmt.Errorf("unknown element %s", n.name)
	}
	kids := n.kids
	for _, w := range want {
		name := strings.TrimRight(w, "?*")
		k := 0
		for k < len(kids) && kids[k].name == name {
			k++
		}
		if w == name && k != 1 || strings.HasSuffix(w, "?") && k > 1 {
			return fmt.Errorf("%s has %d of %s", n.name, k, name)
		}
		kids = kids[k:]
	}
	if len(kids) > 0 {
		return fmt.Errorf("%s has %s out of order", n.name, kids[0].name)
	}
	for _, k := range n.kids {
		if err := walk(k); err != nil {
			return err
		}
	}
	return nil
}

func cim(n *node) error {
	space, want := nsRASD, rasd
	if n.name == "System" {
		space, want = nsVSSD, vssd
	}
	missing := map[string]bool{}
	for _, w := range want {
		missing[w] = true
	}
	last := ""
	for _, k := range n.kids {
		if k.space != space || k.name <= last || len(k.kids) > 0 {
			return fmt.Errorf("%s has %s of %q behind %s", n.name, k.name, k.space, last)
		}
		last = k.name
		delete(missing, k.name)
	}
	for w := range maps.Keys(missing) {
		return fmt.Errorf("%s without %s", n.name, w)
	}
	return nil
}
