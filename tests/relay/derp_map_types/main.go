// Command derp_map_types reads a DERP map by Tailscale's own types, strictly, and
// prints as JSON what it got. Its argument says the form of what standard input
// has: json (a map), policy (HuJSON with derpMap in it) or headscale (YAML).
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/tailscale/hujson"
	"gopkg.in/yaml.v3"
	"tailscale.com/tailcfg"
)

func main() {
	if len(os.Args) != 2 {
		fail(fmt.Errorf("usage: derp_map_types json|policy|headscale"))
	}
	text, err := io.ReadAll(os.Stdin)
	if err != nil {
		fail(err)
	}
	derpMap, err := read(os.Args[1], text)
	if err != nil {
		fail(err)
	}
	if err := check(derpMap); err != nil {
		fail(err)
	}
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	if err := out.Encode(derpMap); err != nil {
		fail(err)
	}
}

func read(form string, text []byte) (*tailcfg.DERPMap, error) {
	derpMap := new(tailcfg.DERPMap)
	switch form {
	case "json":
		return derpMap, strict(text, derpMap)
	case "policy":
		standard, err := hujson.Standardize(text)
		if err != nil {
			return nil, err
		}
		var policy struct {
			DERPMap *tailcfg.DERPMap `json:"derpMap"`
		}
		if err := strict(standard, &policy); err != nil {
			return nil, err
		}
		if policy.DERPMap == nil {
			return nil, fmt.Errorf("there is no derpMap")
		}
		return policy.DERPMap, nil
	case "headscale":
		// yaml.Unmarshal, by which headscale reads its derp.paths, leaves out fields that it does not know.
		decoder := yaml.NewDecoder(bytes.NewReader(text))
		decoder.KnownFields(true)
		return derpMap, decoder.Decode(derpMap)
	}
	return nil, fmt.Errorf("there is no form %q", form)
}

func strict(text []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return fmt.Errorf("there is more after the map")
	}
	return nil
}

// check finds what the types' comments ask for and the types do not.
func check(derpMap *tailcfg.DERPMap) error {
	names := map[string]bool{}
	for id, region := range derpMap.Regions {
		if region == nil || region.RegionID != id || id <= 0 {
			return fmt.Errorf("region %v is not what its key says", id)
		}
		for _, node := range region.Nodes {
			if node.RegionID != id || node.HostName == "" || names[node.Name] {
				return fmt.Errorf("region %v: node %q is of another region, has no name, or one that another has", id, node.Name)
			}
			names[node.Name] = true
		}
	}
	return nil
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
