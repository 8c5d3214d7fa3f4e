#!/usr/bin/env cwl-runner
cwlVersion: v1.2
class: Workflow
doc: fails in all ways, and has jobs whose number is known at once, later, or never
requirements:
  ScatterFeatureRequirement: {}
  SubworkflowFeatureRequirement: {}
  InlineJavascriptRequirement: {}
  StepInputExpressionRequirement: {}
  MultipleInputFeatureRequirement: {}
inputs:
  groups:
    type: {type: array, items: {type: array, items: int}}
    default: [[1, 2], [3], []]
  draw: {type: boolean, default: false}
  letters: {type: 'string[]', default: [a, b]}
outputs: {}
steps:
  group:            # 2 + 1 + 0 jobs, and one for each group
    run:
      class: Workflow
      inputs: {numbers: 'int[]'}
      outputs: {all: {type: File, outputSource: join/all}}
      steps:
        each:
          run:
            class: CommandLineTool
            baseCommand: [sh, -c]
            arguments: ['echo "number $1" >&2; echo "$1" > out.txt', each]
            inputs: {i: {type: int, inputBinding: {position: 1}}}
            stderr: each.log
            outputs: {out: {type: File, outputBinding: {glob: out.txt}}}
          scatter: i
          in: {i: numbers}
          out: [out]
        join:
          run:
            class: CommandLineTool
            baseCommand: [cat, /dev/null]
            inputs: {files: {type: 'File[]', inputBinding: {position: 1}}}
            stdout: all.txt
            outputs: {all: stdout}
          in: {files: each/out}
          out: [all]
    scatter: numbers
    in: {numbers: groups}
    out: [all]
  pairs:            # 4 jobs
    run:
      class: CommandLineTool
      baseCommand: [sh, -c, 'test "$0$1" != ab || { echo "ab is not liked"; exit 7; }']
      inputs: {x: {type: string, inputBinding: {position: 1}}, y: {type: string, inputBinding: {position: 2}}}
      stdout: pair.txt
      outputs: {o: stdout}
    scatter: [x, y]
    scatterMethod: flat_crossproduct
    in: {x: letters, y: letters}
    out: [o]
  count:            # no job
    run:
      class: ExpressionTool
      inputs: {files: 'File[]'}
      outputs: {n: 'int[]'}
      expression: "${ return {n: inputs.files.map(function(f, i) { return i; })}; }"
    in: {files: group/all}
    out: [n]
  later:            # 3 jobs, known when count has run
    run:
      class: CommandLineTool
      baseCommand: ['true']
      inputs: {i: {type: int, inputBinding: {position: 1}}}
      outputs: {}
    scatter: i
    in: {i: count/n}
    out: []
  picture:          # skipped
    run: {class: CommandLineTool, baseCommand: ['true'], inputs: {draw: boolean}, outputs: {}}
    when: $(inputs.draw)
    in: {draw: draw}
    out: []
  some:             # 1 of 2 jobs
    run: {class: CommandLineTool, baseCommand: ['true'], inputs: {l: string}, outputs: {}}
    when: $(inputs.l == "a")
    scatter: l
    in: {l: letters}
    out: []
  liar:             # fails
    run: {class: CommandLineTool, baseCommand: ['true'], inputs: {}, outputs: {o: {type: File, outputBinding: {glob: never.txt}}}}
    in: {}
    out: [o]
  absent:           # fails
    run: {class: CommandLineTool, baseCommand: [no-such-program-anywhere], inputs: {}, outputs: {}}
    in: {}
    out: []
  killed:           # fails
    run: {class: CommandLineTool, baseCommand: [sh, -c, 'kill -9 $$'], inputs: {}, outputs: {}}
    in: {}
    out: []
  tolerant:         # 3 is its success
    run: {class: CommandLineTool, baseCommand: [sh, -c, 'exit 3'], inputs: {}, outputs: {}, successCodes: [3]}
    in: {}
    out: []
  noisy:
    run:
      class: CommandLineTool
      baseCommand: [sh, -c]
      arguments:
        - |
          printf 'INFO [job noisy] completed permanentFail\n[2026-01-01 00:00:00] ERROR it is not true\n\377\376\000\r%%' >&2
          printf '{"waymark": 1}\nINFO [job other] /tmp/x$ true\nno newline' >&2
      inputs: {}
      outputs: {}
    in: {}
    out: []
  never:            # needs what does not come
    run: {class: CommandLineTool, baseCommand: ['true'], inputs: {f: File}, outputs: {}}
    in: {f: liar/o}
    out: []
