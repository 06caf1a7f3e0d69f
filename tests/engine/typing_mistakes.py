"""What a type checker has to report: one mistake a line, marked. It is read, never run."""

import numpy as np

import schuss

w, g, m, v = (np.zeros(3, np.float32) for _ in range(4))
opt = schuss.AdamW({"w": w})

schuss.AdamWW({"w": w})  # mistake: no such rule
schuss.AdamW("params")  # mistake: no arrays
schuss.AdamW({"w": w}, lrr=1e-3)  # mistake: no such argument
schuss.AdamW({"w": w}, lr="fast")  # mistake: not a number
schuss.AdamW({"w": w}, betas=0.9)  # mistake: not a pair
schuss.AdamW({"w": w}, 1e-3)  # mistake: by keyword only
schuss.Adam({"w": w}, eps_mode="outsied")  # mistake: no such word
schuss.Adam({"w": w}, preset="kears")  # mistake: no such word
schuss.SGD({"w": w}, nonfinite="skp")  # mistake: no such word
opt.step("grads")  # mistake: no arrays
opt.step({"w": g}, loss="0.1")  # mistake: not a number
opt.learning_rate = 1e-4  # mistake: no such attribute
print(opt.grad_nrom)  # mistake: no such attribute
opt.add_param_group([w])  # mistake: no mapping
schuss.functional.adamm(w, g, m, v, step=1)  # mistake: no such rule
schuss.functional.adam(w, g, m, v, step=1, lrr=1e-3)  # mistake: no such argument
