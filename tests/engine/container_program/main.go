// Command container_program is what the engine tests run inside containers: an
// image made from scratch holds no shell, no sleep, no test.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: container_program wait | stubborn | exit CODE | exists PATH")
		os.Exit(2)
	}
	switch os.Args[1] {
	case "wait": // until asked to stop
		asked := make(chan os.Signal, 1)
		signal.Notify(asked, syscall.SIGTERM)
		fmt.Println("waiting")
		<-asked
	case "stubborn": // goes only by SIGKILL
		signal.Ignore(syscall.SIGTERM)
		fmt.Println("waiting, deaf to SIGTERM")
		for {
			time.Sleep(time.Hour)
		}
	case "exit":
		code, err := strconv.Atoi(os.Args[2])
		if err != nil {
			panic(err)
		}
		os.Exit(code)
	case "exists":
		if _, err := os.Stat(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}
